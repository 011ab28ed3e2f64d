"""Paging through an answer: nothing twice, nothing lost, and what was seen stays where it was."""

from mmsearch.answers import Answer
from mmsearch.search import Hit


def hit(name: object, rank: int = 1) -> Hit:
    return Hit(rank, 0.5, "image", str(name), None, None)


def test_pages_follow_on_each_other_to_the_end() -> None:
    asked: list[int] = []

    def search(k: int) -> list[Hit]:
        asked.append(k)
        return [hit(number, number + 1) for number in range(min(k, 1000))]

    answer = Answer(search, 61)
    seen: list[Hit] = []
    more = True
    while more:
        page, more = answer.page(len(seen), 60)
        seen += page
    assert [one.id for one in seen] == [str(number) for number in range(1000)]
    assert [one.rank for one in seen] == list(range(1, 1001))
    assert asked == [61, 244, 976, 3904]  # not one for each page


def test_what_was_seen_stays_where_a_deeper_search_ranks_otherwise() -> None:
    answer = Answer(lambda k: [hit(number) for number in (range(k) if k == 50 else reversed(range(k)))], 50)
    first, _ = answer.page(0, 10)
    answer.page(50, 10)
    assert answer.page(0, 10)[0] == first
    everything, _ = answer.page(0, 300)
    assert len({one.id for one in everything}) == len(everything)


def test_an_answer_that_is_whole_is_not_asked_again() -> None:
    asked: list[int] = []

    def search(k: int) -> list[Hit]:
        asked.append(k)
        return [hit(1)]

    answer = Answer(search, 120)
    assert answer.page(0, 1) == ([hit(1)], False)
    assert answer.page(5, 10) == ([], False)
    assert asked == [120]
