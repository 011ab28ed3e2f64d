"""A vocabulary cut down to one text cuts that text as the whole one does."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmsearch.encoders.tokens import quickly_read, tokenizer_for, whole_tokenizer

LITE = (Path(__file__).parents[1] / "mmsearch" / "encoders" / "lite" / "tokenizer.json").read_text(encoding="utf-8")
SAID = ["a red bicycle", "the bicycles' reddest wheel", "in the snow", "1,024 cafés", "SNOW-white", "雪", "🚲"]
TEXTS = st.lists(st.sampled_from(SAID) | st.text(max_size=12), max_size=5).map(" ".join)


def learned() -> str:
    """Pieces of words as CLIP has them: bytes, and a sign at the end of a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<s>"],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(SAID * 3, trainer)
    return str(tokenizer.to_str())


PAIRS = learned()
BPE = quickly_read(PAIRS)


def said(**says: object) -> str:
    """The same, with something else said of the model."""
    written = json.loads(BPE)
    written["model"] |= says
    return json.dumps(written)


@pytest.mark.parametrize("written", [LITE, BPE], ids=["WordPiece", "BPE"])
@given(text=TEXTS)
@example(text="")
@example(text="<s>bicycle[MASK] ##ing </w>")
@example(text="bicycle" * 60)
def test_one_text_is_cut_as_by_the_whole_vocabulary(written: str, text: str) -> None:
    here, there = tokenizer_for(text, written), whole_tokenizer(written)
    assert here.encode(text).tokens == there.encode(text).tokens
    assert here.encode(text).ids == there.encode(text).ids


@pytest.mark.parametrize("written", [LITE, BPE], ids=["WordPiece", "BPE"])
def test_it_is_a_small_part_of_the_vocabulary(written: str) -> None:
    whole = whole_tokenizer(written).get_vocab_size()
    assert 0 < tokenizer_for("a red bicycle", written).get_vocab_size() < whole / 5


def test_of_pairs_and_of_what_chance_decides_the_whole_is_taken() -> None:
    for written in (PAIRS, said(byte_fallback=True), said(dropout=0.1)):
        assert tokenizer_for("a red bicycle", written).get_vocab_size() == whole_tokenizer(BPE).get_vocab_size()


def test_merges_are_written_in_the_form_that_is_read_fastest_and_mean_the_same() -> None:
    assert json.loads(PAIRS)["model"]["merges"][0] != json.loads(BPE)["model"]["merges"][0]
    for text in SAID:
        assert whole_tokenizer(BPE).encode(text).ids == whole_tokenizer(PAIRS).encode(text).ids
    assert json.loads(quickly_read(BPE)) == json.loads(BPE)
    assert json.loads(quickly_read(LITE)) == json.loads(LITE)


def test_a_token_with_a_space_in_it_stays_in_a_pair() -> None:
    spaced = json.loads(PAIRS)
    spaced["model"]["vocab"] |= {"a b": 700, "a ": 701}
    spaced["model"]["merges"].append(["a ", "b"])
    assert json.loads(quickly_read(json.dumps(spaced))) == spaced
