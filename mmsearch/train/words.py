"""The tokenizer of a text tower: learned from the training texts, or the one that came with given weights."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmsearch.encoders.bundle import clean_text
from mmsearch.encoders.hugging_face import config_of
from mmsearch.encoders.manifest import TextSpec
from mmsearch.errors import ModelError
from mmsearch.train.design import TEXT_KINDS, EncoderDesign
from mmsearch.train.towers import PAD, given_folder

PADDING, UNKNOWN, BEGIN, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
SPECIALS = (PADDING, UNKNOWN, BEGIN, END)
TokenArray = npt.NDArray[np.int64]


class Words:
    """Texts -> rows of tokens, as the bundle will make them."""

    def __init__(self, tokenizer_json: str, spec: TextSpec) -> None:
        from tokenizers import Tokenizer

        self.json, self.spec = tokenizer_json, spec
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @classmethod
    def again(cls, tokenizer_json: str, design: EncoderDesign) -> "Words":
        """The tokenizer of a checkpoint."""
        return cls(tokenizer_json, _spec(design))

    def __len__(self) -> int:
        """How many tokens there are."""
        return int(self._tokenizer.get_vocab_size())

    def rows(self, texts: Sequence[str]) -> TokenArray:
        """(n, t) int64, t the longest, filled up on the right."""
        encoded = [self._row(text) for text in texts]
        ids = np.full((len(texts), max(1, max(map(len, encoded), default=1))), self.spec.pad_id, np.int64)
        for place, row in enumerate(encoded):
            ids[place, : len(row)] = row
        return ids

    def text(self, ids: Iterable[int]) -> str:
        """What tokens say."""
        return str(self._tokenizer.decode([int(token) for token in ids]))

    def id(self, token: str) -> int:
        """Raises KeyError for a token that there is none of."""
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise KeyError(token)
        return int(found)

    def _row(self, text: str) -> list[int]:
        encoding = self._tokenizer.encode(clean_text(text, self.spec.clean), add_special_tokens=False)
        encoding.truncate(self.spec.max_tokens - self._tokenizer.num_special_tokens_to_add(False))
        return list(self._tokenizer.post_process(encoding).ids)


def words_for(design: EncoderDesign, texts: Iterable[str]) -> Words:
    """Words for a BiLSTM, pieces of words (BPE, Sennrich et al. 2016) for a transformer, or what came with weights.

    Raises ModelError where given weights have no tokenizer that can be run.
    """
    if design.text_tower not in TEXT_KINDS:
        return _given(given_folder(design.text_tower), design)
    spec = _spec(design)
    return Words(_learned(design, [clean_text(text, spec.clean) for text in texts]), spec)


def _learned(design: EncoderDesign, texts: Sequence[str]) -> str:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    whole = design.text_tower == "bilstm"
    kind: Any = (
        models.WordLevel(unk_token=UNKNOWN) if whole else models.BPE(unk_token=UNKNOWN, end_of_word_suffix="</w>")
    )
    tokenizer = Tokenizer(kind)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    common: dict[str, Any] = {"vocab_size": design.vocabulary, "special_tokens": list(SPECIALS), "show_progress": False}
    if whole:
        trainer: Any = trainers.WordLevelTrainer(**common)
    else:
        trainer = trainers.BpeTrainer(end_of_word_suffix="</w>", **common)
        tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (BEGIN, END)],
    )
    return str(tokenizer.to_str())


def _spec(design: EncoderDesign) -> TextSpec:
    if design.text_tower in TEXT_KINDS:
        return TextSpec(design.max_tokens, pad_id=PAD, clean="lower")
    config = config_of(given_folder(design.text_tower))
    half = config.get("text_config")  # of a model with two towers
    pad_id = (half if isinstance(half, dict) else config).get("pad_token_id")
    return TextSpec(design.max_tokens, pad_id=PAD if pad_id is None else pad_id, clean="whitespace")


def _given(folder: Path, design: EncoderDesign) -> Words:
    try:
        return Words((folder / "tokenizer.json").read_text(encoding="utf-8"), _spec(design))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no tokenizer.json that can be read; save the fast tokenizer there.") from error
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise ModelError(f"{folder / 'tokenizer.json'} cannot be understood: {error}.") from error
