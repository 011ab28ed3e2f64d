"""The command line: arguments in, one library call, printing out.

Results go to stdout, everything else to stderr. A mistake of the user's is one sentence and exit code 1, wrong usage 2,
Ctrl-C 130. Whatever a command can do, the library can. The commands stand in files by task.
"""

import os
import sys

import click

from mmsearch import __version__
from mmsearch.cli.duplicates import duplicates_command
from mmsearch.cli.encoders import train_encoder_command
from mmsearch.cli.indexing import index_command, models_command, remove_command, status_command
from mmsearch.cli.judging import classify_command, describe_command, match_command
from mmsearch.cli.measuring import evaluate_command
from mmsearch.cli.printing import fail
from mmsearch.cli.searching import lookup_command, search_command
from mmsearch.cli.serving import serve_command
from mmsearch.cli.training import feedback_group, heads_group, pairs_group, train_group
from mmsearch.errors import Error, UsageError

COMMANDS = (
    index_command,
    search_command,
    lookup_command,
    match_command,
    classify_command,
    describe_command,
    duplicates_command,
    status_command,
    remove_command,
    serve_command,
    models_command,
    pairs_group,
    train_group,
    heads_group,
    feedback_group,
    evaluate_command,
)


def main() -> None:
    """Run the command line and exit."""
    # What is printed was made safe for a terminal; a locale that cannot spell it must not stop a search
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(standalone_mode=False, prog_name="mmsearch")
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except UsageError as error:
        code = fail(str(error), 2)
    except Error as error:
        code = fail(str(error), 1)
    except (KeyboardInterrupt, click.Abort):
        code = 130
    except BrokenPipeError:  # `mmsearch search … | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:  # a full disk behind stdout, say; what goes wrong with an index is an Error
        code = fail(f"{error.filename or 'The output'}: {error.strerror or error}.", 1)
    sys.exit(code or 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mmsearch")
def cli() -> None:
    """Search pictures and texts by meaning, on your own machine.

    \b
    Examples:
      mmsearch index ~/Pictures
      mmsearch search "a red bicycle in the snow"
      mmsearch search ./dog.jpg
      mmsearch lookup ./dog.jpg
    """


train_group.add_command(train_encoder_command)
for command in COMMANDS:
    cli.add_command(command)
