"""Drivers, cards and builds of torch, judged from recordings of machines that had them."""

import pytest

from luthier.plan import cuda
from luthier.plan.cuda import Build, Card

# What nvidia-smi --query-gpu=driver_version,name,memory.total,compute_cap --format=csv,noheader,nounits printed.
H100 = "580.159.04, NVIDIA H100 80GB HBM3, 81559, 9.0\n"
TWO_CARDS = "550.54.15, Tesla T4, 15360, 7.5\n550.54.15, NVIDIA A100-SXM4-80GB, 81920, 8.0\n"
WITHOUT_CAPABILITY = "470.57.02, Tesla V100-SXM2-16GB, 16160\n"
SHARED_MEMORY = "580.95.05, NVIDIA GB10, [N/A], 12.1\n"
FAILED = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is installed.\n"
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95\n"
NO_SUCH_FIELD = 'Field "compute_cap" is not a valid field to query.\n'

# torch.cuda.get_arch_list() of the published builds.
OF_CUDA_13 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
OF_CUDA_12 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
TORCH_213 = Build("2.13.0+cu130", "13.0", OF_CUDA_13, True, True, True)
TORCH_28 = Build("2.8.0+cu128", "12.8", OF_CUDA_12, True, True, False)
TORCH_26 = Build("2.6.0+cu124", "12.4", OF_CUDA_12, False, True, False)
FOR_CPUS = Build("2.13.0+cpu", "", (), True, False, True)


def judged(answer: str, build: Build | None):
    return cuda.judge_driver(*cuda.read_cards(answer), build)


def test_the_cards_are_read_as_the_driver_names_them():
    assert cuda.read_cards(H100) == ("580.159.04", [Card("NVIDIA H100 80GB HBM3", 81559 * 2**20, "9.0")])
    driver, cards = cuda.read_cards(TWO_CARDS)
    assert (driver, [card.capability for card in cards]) == ("550.54.15", ["7.5", "8.0"])
    assert cuda.read_cards(WITHOUT_CAPABILITY)[1] == [Card("Tesla V100-SXM2-16GB", 16160 * 2**20, "")]
    assert cuda.read_cards(SHARED_MEMORY)[1] == [Card("NVIDIA GB10", 0, "12.1")]


@pytest.mark.parametrize("answer", [FAILED, MISMATCH, NO_SUCH_FIELD, "", "\n"])
def test_what_is_no_list_of_cards_is_not_taken_for_one(answer: str):
    with pytest.raises(ValueError, match=answer.split("\n")[0][:20] or "no answer"):
        cuda.read_cards(answer)


@pytest.mark.parametrize(
    ("answer", "build"), [(H100, TORCH_213), (H100, TORCH_28), (TWO_CARDS, TORCH_26)], ids=["13 on 580", "12 on 580", "12 on 550"]
)
def test_a_driver_runs_builds_of_its_cuda_and_of_older_ones(answer: str, build: Build):
    finding = judged(answer, build)
    assert (finding.status, finding.mend) == ("ok", "")
    assert build.cuda in finding.seen


def test_a_driver_that_is_too_old_for_the_build_is_an_error_with_both_ways_out():
    finding = judged(TWO_CARDS, TORCH_213)
    assert finding.status == "error"
    assert "needs driver 580 or newer" in finding.seen
    assert "install driver 580 or newer, or a torch for CUDA 12.x" in finding.mend


def test_a_build_without_kernels_for_a_card_is_an_error_that_names_the_card():
    """CUDA 13 has left Volta out; its driver still names the card."""
    finding = judged("580.95.05, Tesla V100-SXM2-16GB, 16384, 7.0\n", TORCH_213)
    assert finding.status == "error"
    assert "no kernels for Tesla V100-SXM2-16GB (compute capability 7.0)" in finding.seen


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ("8.9", ("sm_80", "sm_86"), True),  # code of an older minor version
        ("9.0", ("sm_80", "sm_86"), False),  # of an older major one
        ("9.0", ("sm_80", "compute_80"), True),  # that the driver translates
        ("9.0", ("sm_90a",), True),
        ("7.5", ("sm_80",), False),
        ("12.1", ("sm_100", "sm_120"), True),
    ],
)
def test_which_code_runs_on_which_card(capability: str, architectures: tuple[str, ...], runs: bool):
    build = Build("2.13.0+cu130", "13.0", architectures, True, True, True)
    assert (cuda.judge_driver("580.1", [Card("a card", 8 * 2**30, capability)], build).status == "ok") is runs


def test_a_torch_without_cuda_beside_a_card_is_a_warning_with_the_newest_cuda_that_the_driver_runs():
    finding = judged(TWO_CARDS, FOR_CPUS)
    assert finding.status == "warning"
    assert "2.13.0+cpu" in finding.seen
    assert "a build with CUDA, up to 12.x" in finding.mend


def test_a_torch_that_sees_no_card_is_a_warning():
    finding = judged(H100, Build("2.13.0+cu130", "13.0", (), True, False, True))
    assert finding.status == "warning"
    assert "CUDA_VISIBLE_DEVICES" in finding.mend


def test_without_torch_the_driver_says_which_builds_it_runs():
    assert judged(H100, None).seen.endswith("for builds of torch up to CUDA 13.x")
    assert judged(WITHOUT_CAPABILITY, None).seen.endswith("up to CUDA 11.x")


@pytest.mark.parametrize(
    ("capability", "status", "words"),
    [
        ("7.5", "warning", "bf16 no, fp8 no, flash attention no"),
        ("8.6", "ok", "bf16 yes, fp8 no, flash attention yes"),
        ("8.9", "ok", "bf16 yes, fp8 yes, flash attention yes"),
        ("9.0", "ok", "bf16 yes, fp8 yes, flash attention yes"),
        ("10.0", "ok", "bf16 yes, fp8 yes, flash attention yes"),
        ("", "ok", "does not tell"),
    ],
)
def test_what_a_card_can_do(capability: str, status: str, words: str):
    finding = cuda.judge_card(Card("a card", 16 * 2**30, capability))
    assert finding.status == status
    assert words in finding.seen


def flash(build: Build | None, capability: str = "9.0", installed: str = "", python: str = "3.11", machine: str = "linux_x86_64"):
    return cuda.judge_flash_attention(build, [Card("a card", 0, capability)], installed, python, machine)


@pytest.mark.parametrize(
    ("build", "python", "name"),
    [
        (TORCH_28, "3.11", "flash_attn-2.8.3+cu12torch2.8cxx11abiTRUE-cp311-cp311-linux_x86_64.whl"),
        (TORCH_26, "3.13", "flash_attn-2.8.3+cu12torch2.6cxx11abiFALSE-cp313-cp313-linux_x86_64.whl"),
    ],
)
def test_the_wheel_that_fits_is_named_by_python_torch_cuda_and_abi(build: Build, python: str, name: str):
    finding = flash(build, python=python)
    assert finding.details["wheel"] == f"https://github.com/Dao-AILab/flash-attention/releases/download/v2.8.3/{name}"
    assert f"pip install {finding.details['wheel']}" in finding.seen


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"build": TORCH_213}, "no published wheel of flash-attn 2.8.3 fits"),
        ({"build": TORCH_28, "python": "3.14"}, "no published wheel"),
        ({"build": TORCH_28, "machine": "linux_aarch64"}, "no published wheel"),
        ({"build": TORCH_28, "capability": "7.5"}, "none is needed: it is for compute capability 8.0 and newer"),
        ({"build": TORCH_28, "installed": "2.7.4"}, "flash-attn 2.7.4 is installed"),
        ({"build": FOR_CPUS}, "none is needed: without an NVIDIA card"),
        ({"build": None}, "none is needed"),
    ],
)
def test_where_no_wheel_fits_or_none_is_needed_that_is_said_and_is_no_fault(how: dict, said: str):
    finding = flash(**how)
    assert (finding.status, finding.mend) == ("ok", "")
    assert said in finding.seen
    assert "pip install" not in finding.seen


def test_a_torch_with_attention_of_its_own_needs_no_wheel():
    assert "none is needed: this torch has an attention" in flash(TORCH_213).seen
    assert "none is needed" not in flash(TORCH_28).seen
