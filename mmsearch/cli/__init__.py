"""The command line: arguments in, one library call, printing out.

Results go to stdout, everything else to stderr. A mistake of the user's is one sentence and exit code 1, wrong usage 2,
Ctrl-C 130. Whatever a command can do, the library can. The commands stand in files by task.
"""

import os
import sys
from importlib import import_module

# Before numpy is imported: else its threads wait for work in circles, on the cores that decode and encode pictures
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # log2 of processor cycles; 26 by default

import click

from mmsearch import __version__
from mmsearch.cli import streams
from mmsearch.cli.printing import fail
from mmsearch.errors import SHORT_OF_MEMORY, Error, UsageError, is_short_of_memory

# Where each command is; its file is imported when the command is asked for, or named in the help
COMMANDS = {
    "index": "indexing:index_command",
    "search": "searching:search_command",
    "lookup": "searching:lookup_command",
    "match": "judging:match_command",
    "classify": "judging:classify_command",
    "describe": "judging:describe_command",
    "duplicates": "duplicates:duplicates_command",
    "status": "indexing:status_command",
    "remove": "indexing:remove_command",
    "serve": "serving:serve_command",
    "models": "indexing:models_command",
    "pairs": "training:pairs_group",
    "train": "encoders:train_group",
    "heads": "training:heads_group",
    "feedback": "training:feedback_group",
    "evaluate": "measuring:evaluate_command",
}


class _Lazy(click.Group):
    """A group whose commands are imported one by one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        file, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"mmsearch.cli.{file}"), name)
        return command


def main() -> None:
    """Run the command line and exit."""
    streams.set_up()
    try:
        code = cli.main(standalone_mode=False, prog_name="mmsearch")
        sys.stdout.flush()
    except click.NoSuchOption as error:
        from mmsearch.cli.advice import advised

        usage = click.UsageError(advised(error, sys.argv[1:]), error.ctx)
        usage.show()
        code = usage.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except UsageError as error:
        code = fail(str(error), 2)
    except Error as error:
        code = fail(SHORT_OF_MEMORY if is_short_of_memory(error) else str(error), 1)
    except (KeyboardInterrupt, click.Abort):
        code = 130
    except BrokenPipeError:  # `mmsearch search … | head`: the reader has seen enough
        code = 0
    except OSError as error:  # a full disk behind stdout, say; what goes wrong with an index is an Error
        what = f"{error.filename}:" if error.filename else "The output cannot be written:"
        code = fail(SHORT_OF_MEMORY if is_short_of_memory(error) else f"{what} {error.strerror or error}.", 1)
    except Exception as error:
        if not is_short_of_memory(error):
            raise
        code = fail(SHORT_OF_MEMORY, 1)
    try:
        sys.stdout.flush()
    except OSError:  # what cannot be written is still there, and Python would try it once more, and end with 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code or 0)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
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
