"""Whose fault it was, and that those who asked follow their items into every call."""

from hypothesis import given
from hypothesis import strategies as st

from virtex import ItemError
from virtex.batch.items import ItemSteps
from virtex.batch.steps import Steps
from virtex.errors import HandlerError


class Paired:
    """Items are (who asked, what): whoever is told of another one's item is found out."""

    def __init__(self, stacks):
        self.stacks = stacks

    def process_request(self, data, requests):
        assert [who for who, _ in data] == requests
        if any(what == "bad" for _, what in data):
            raise ItemError("bad")
        if any(what == "bug" for _, what in data):
            raise ZeroDivisionError
        if not self.stacks and len(set(requests)) > 1:
            raise ValueError("they do not stack")
        return data

    def run_inference(self, batch, requests):
        assert [who for who, _ in batch] == requests
        return batch

    def process_response(self, row, request):
        assert row[0] == request
        return request


WHATS = st.lists(st.sampled_from(["good", "bad", "bug", "longer"]), min_size=1, max_size=4)


@given(st.lists(WHATS, min_size=1, max_size=6), st.booleans())
def test_each_request_has_its_own_outcome_and_is_told_of_its_own_items(requests, stacks):
    work = [[(who, what) for what in whats] for who, whats in enumerate(requests)]
    outcomes = Steps(Paired(stacks)).run(work, list(range(len(work))))
    for who, (whats, outcome) in enumerate(zip(requests, outcomes, strict=True)):
        if "bad" in whats:
            culprit = min(whats.index(what) for what in ("bad", "bug") if what in whats)
            assert (type(outcome), outcome.index) == (ItemError if whats[culprit] == "bad" else HandlerError, culprit)
        elif "bug" in whats:
            assert type(outcome) is HandlerError
        else:
            assert outcome == [who] * len(whats)


def refusing(item):
    if item[1] == "longer":
        raise ItemError("too long")
    return item


@given(st.lists(WHATS, min_size=1, max_size=6))
def test_those_whose_items_can_not_be_decoded_take_no_part(requests):
    work = [[(who, what) for what in whats] for who, whats in enumerate(requests)]
    outcomes = ItemSteps(Paired(True), refusing).run(work, list(range(len(work))))
    for who, (whats, outcome) in enumerate(zip(requests, outcomes, strict=True)):
        if "longer" in whats:
            assert (type(outcome), outcome.index) == (ItemError, whats.index("longer"))
        elif not {"bad", "bug"} & set(whats):
            assert outcome == [who] * len(whats)


def test_nobody_is_told_where_nobody_asks():
    class Counts:
        def process_request(self, data):
            if "bad" in data:
                raise ItemError("no")
            return data

        def run_inference(self, batch):
            return batch

        def process_response(self, row):
            return row

    steps = Steps(Counts())
    assert not steps.asks
    good, bad = steps.run([["a"], ["bad"]])
    assert good == ["a"] and isinstance(bad, ItemError)
