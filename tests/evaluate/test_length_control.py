import math

import pytest

from luthier.errors import DataError
from luthier.evaluate.length_control import length_controlled, read_difficulties

# 40 comparisons in which the longer answer tends to win.
LENGTHS = [739, 122, 202, 251, 204, 731, 788, 544, 83, 130, 332, 418, 578, 457, 275, 185, 637, 674, 77, 146]
LENGTHS += [434, 382, 804, 489, 407, 416, 616, 548, 196, 677, 693, 862, 718, 291, 321, 601, 602, 641, 788, 298]
RIVALS = [566, 50, 92, 585, 569, 214, 126, 222, 73, 540, 414, 371, 184, 309, 154, 475, 310, 66, 189, 438]
RIVALS += [335, 255, 189, 99, 384, 413, 336, 562, 560, 163, 384, 396, 186, 213, 318, 457, 210, 447, 409, 170]
WON = [1.0, 1.0, 1.0, 0.5, 0.25, 1.0, 1.0, 1.0, 0.5, 1.0, 0.25, 1.0, 1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 0.5, 1.0]
WON += [1.0, 1.0, 0.5, 1.0, 1.0, 0.0, 1.0, 0.0, 0.5, 1.0, 0.5, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.5]


def test_equals_a_binomial_model_of_statsmodels():
    # statsmodels 0.15.0: sm.GLM(WON, [1, tanh(d / std)], family=Binomial()), its constant and that one's standard error through the sigmoid.
    found = length_controlled(WON, LENGTHS, RIVALS)
    assert (found.value, found.low, found.high) == pytest.approx((0.64714, 0.46152, 0.79693), abs=3e-4)
    assert found.value < sum(WON) / len(WON), "the model's answers are longer, and that helped them"


def test_both_sides_swapped_give_the_other_share():
    found = length_controlled(WON, LENGTHS, RIVALS)
    swapped = length_controlled([1 - won for won in WON], RIVALS, LENGTHS)
    assert swapped.value == pytest.approx(1 - found.value, abs=1e-6)
    assert swapped.low == pytest.approx(1 - found.high, abs=1e-6)


def test_a_judge_that_only_counts_letters_sees_no_better_side():
    lengths, rivals = [100, 300] * 30, [300, 100] * 29 + [310, 100]
    won = [float(mine > theirs) for mine, theirs in zip(lengths, rivals, strict=True)]
    assert length_controlled(won, lengths, rivals).value == pytest.approx(0.5, abs=0.05)


def test_all_wins_have_an_interval_and_equal_lengths_no_value():
    found = length_controlled([1.0] * 20, list(range(20)), [5] * 20)
    assert 0 < found.low < found.value < found.high < 1
    assert length_controlled([1.0, 0.0], [3, 3], [3, 3]) is None
    assert length_controlled([1.0], [3], [4]) is None


# --- AlpacaEval's difficulties -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def gamed(tmp_path):
    """A file like AlpacaEval's df_gamed.csv, for 40 instructions: the baseline told to be brief, and told to be wordy."""
    lines = ["index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline,model"]
    for model, difference in (("brief", 0.9), ("wordy", -1.4)):
        for place in range(40):
            preferred = 1 / (1 + math.exp(1.2 * difference + math.sin(3 * place)))
            lines.append(f"{place},{preferred:.4f},{difference + math.cos(place) / 2:.4f},{math.sin(place) - WON[place]:.4f},False,{model}")
    path = tmp_path / "df_gamed.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_with_difficulties_equals_alpaca_evals_own(gamed):
    # alpaca_eval 0.6.6, get_length_controlled_winrate with this file and these comparisons and without its penalty (n_splits 0, C 1e6): 67.2740.
    found = length_controlled(WON, LENGTHS, RIVALS, range(40), read_difficulties(gamed))
    assert found.value == pytest.approx(0.672740, abs=5e-5)
    assert found.low < found.value < found.high
    assert found.value != pytest.approx(length_controlled(WON, LENGTHS, RIVALS).value, abs=2e-3), "without them it is another number"


def test_hard_instructions_are_told_by_their_place(gamed):
    known = read_difficulties(gamed)
    some = list(range(0, 40, 2))
    found = length_controlled(WON[::2], LENGTHS[::2], RIVALS[::2], some, known)
    moved = length_controlled(WON[::2], LENGTHS[::2], RIVALS[::2], [place + 1 for place in some], known)
    assert found.n == 20
    assert found.value != moved.value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("instruction_difficulty\n1.0\n", "has no column 'index'"),
        ("index,instruction_difficulty,preference,std_delta_len\n0,hard,1,0\n", "could not convert"),
        ("index,instruction_difficulty,preference,std_delta_len\n0,1\n", "cannot be read"),
        ("index,instruction_difficulty,preference,std_delta_len\n0,1,2,0\n", "outside 0 to 1"),
        ("index,instruction_difficulty,preference,std_delta_len\n1e400,1,1,0\n", "'1e400' is no place"),
        ("index,instruction_difficulty,preference,std_delta_len\n0.7,1,1,0\n", "'0.7' is no place"),
        ("", "holds no rows"),
    ],
)
def test_another_file_is_refused(tmp_path, text, problem):
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=problem) as caught:
        read_difficulties(path)
    assert caught.value.where == str(path)
    assert "df_gamed.csv" in caught.value.next_step
