from flows.pipeline import disambiguate


def test_different_things_of_one_name_are_told_apart():
    assert disambiguate(["a", "b", "a", "a"], [1, 2, 3, 1]) == ["a [1]", "b", "a [2]", "a [1]"]
