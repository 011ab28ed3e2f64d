"""Reading `tokenizer.json`; in part, where one text is all that is to be cut into tokens.

`tokenizers` takes 50 ms to build a vocabulary of 50,000 tokens with as many merges, a tenth of a query in a new
process, and a query of five words can need a few hundred of them: a token stands for a part of a word, and what BPE
(Sennrich et al. 2016) or WordPiece (Wu et al. 2016) do to a word asks for tokens that are part of it, and nothing else.
"""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_PARTS = 5_000  # of the words of a text; a longer one takes as long as the whole vocabulary


def whole_tokenizer(tokenizer_json: str) -> "Tokenizer":
    """The tokenizer of a file. Raises what `tokenizers` does, which is nothing narrower than Exception."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()  # a Bundle cuts and fills up itself
    tokenizer.no_padding()
    return tokenizer


def tokenizer_for(text: str, tokenizer_json: str) -> "Tokenizer":
    """A tokenizer that cuts this one text as the whole one does. Raises as `whole_tokenizer` does."""
    says = json.loads(tokenizer_json)
    model = says["model"]
    special = {token["content"] for token in says["added_tokens"]}
    if not _can_be_cut_down(model) or any(token in text for token in special):
        return whole_tokenizer(tokenizer_json)
    vocabulary, merges = model["vocab"], model.get("merges", [])
    kept = {token: vocabulary[token] for token in (*special, model.get("unk_token")) if token in vocabulary}
    says["model"] = {**model, "vocab": kept} | ({"merges": []} if "merges" in model else {})
    words = _words(whole_tokenizer(json.dumps(says)), text)
    if sum(len(word) ** 2 for word in words) > 2 * MOST_PARTS:
        return whole_tokenizer(tokenizer_json)
    first, last = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    for part in _parts(words):
        forms = (part, first + part, part + last, first + part + last)
        kept.update((form, vocabulary[form]) for form in forms if form in vocabulary)
    if merges:
        pairs = {
            f"{token[:at]} {token[at:]}"
            for token in kept
            for at in range(1, len(token))
            if token[:at] in kept and token[at:] in kept
        }
        says["model"]["merges"] = [merge for merge in merges if merge in pairs]  # their order is their rank
    return whole_tokenizer(json.dumps(says))


def quickly_read(tokenizer_json: str) -> str:
    """The same tokenizer, its merges written as "a b" rather than ["a", "b"], where no token holds a space.

    Both forms mean the same to `tokenizers`, which reads this one in two thirds of the time.
    """
    says = json.loads(tokenizer_json)
    merges = says["model"].get("merges", [])
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    if all(len(pair) == 2 and not any(" " in token for token in pair) for pair in pairs) and merges:
        says["model"]["merges"] = [" ".join(pair) for pair in pairs]
    return json.dumps(says, ensure_ascii=False)


def _can_be_cut_down(model: dict[str, Any]) -> bool:
    if model.get("type") == "WordPiece":
        return True
    merges = model.get("merges") or [[]]
    return (
        model.get("type") == "BPE"
        and isinstance(merges[0], str)  # lists of pairs take longer to read than the vocabulary does to build
        and not any(model.get(told) for told in ("dropout", "byte_fallback", "continuing_subword_prefix"))
    )


def _words(tokenizer: "Tokenizer", text: str) -> list[str]:
    """What a tokenizer makes of a text before it looks into its vocabulary."""
    text = text if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def _parts(words: Iterable[str]) -> set[str]:
    """All that stands in one of the words; the empty string too, of which an affix alone is a form."""
    return {word[start:end] for word in words for start in range(len(word) + 1) for end in range(start, len(word) + 1)}
