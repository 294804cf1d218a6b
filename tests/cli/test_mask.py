"""`arbprob mask`: what it draws in signs, says in words, and how it ends."""

import json
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from typer.testing import CliRunner, Result

from arbprob_hf import order
from arbprob_hf.analysis.describe import describe, lines
from arbprob_hf.cli import app


def command(*words: str) -> Result:
    return CliRunner().invoke(app, ["mask", *words])


def facts(text: str) -> dict[str, str]:
    """The lines below the pictures: what stands behind each label, lines that go on joined."""
    found: dict[str, str] = {}
    for line in text.split("\n\n")[-1].splitlines():
        label, said = line[:12].strip(), line[12:]
        if label:
            found[label] = said
        else:
            found[list(found)[-1]] += f" {said}"
    return found


def test_the_mask_of_the_readme() -> None:
    ran = command("causal & window(3) | prefix(2)", "--length", "7", "--layers", "3")
    assert ran.exit_code == 0
    assert ran.stdout == (
        "causal & window(3) | prefix(2): 7 tokens, 3 layers\n"
        "\n"
        "q\\k  0  1  2  3  4  5  6\n"
        "0    #  #! .  .  .  .  .\n"
        "1    #  #  .  .  .  .  .\n"
        "2    #  #  #  .  .  .  .\n"
        "3    #  #  #  #  .  .  .\n"
        "4    #  #  #  #  #  .  .\n"
        "5    #  #  2  #  #  #  .\n"
        "6    #  #  2  2  #  #  #\n"
        "     # allowed   2 through 2 layers   ! a later key\n"
        "\n"
        "allowed     26 of 49 pairs (53%)\n"
        "2 layers    3 more through relays, 29 in all\n"
        "3 layers    nothing more\n"
        "last query  token 6 sees 0-1, 4-6; through 3 layers 0-6, at most 6 back\n"
        "later keys  reach query 0\n"
        "            query 0 <- key 1 (allowed by the mask itself)\n"
        "verdict     not safe for next-token training: the loss on token 1 would count\n"
        "            answers that were shown; tokens 2-6 may be scored\n"
    )


def test_a_causal_mask_is_safe() -> None:
    said = facts(command("causal & window(3)", "--layers", "4").stdout)
    assert said["later keys"] == "reach no query"
    assert said["verdict"].startswith("safe: no later key reaches any query")
    assert said["last query"] == "token 15 sees 13-15; through 4 layers 7-15, at most 8 back"


def test_depths_are_digits() -> None:
    out = command("causal & window(2)", "--length", "12", "--layers", "12").stdout
    assert "\n11   +  +  9  8  7  6  5  4  3  2  #  #\n" in out
    assert "# allowed   2-9 through that many layers   + through 10 or more\n" in out


def test_a_relayed_leak_is_told_from_a_direct_one() -> None:
    # three given tokens see the whole body; the body looks safe, but reads later tokens through them
    body = torch.arange(1, 6)
    naive = order(*(torch.cat([torch.full((3,), given), body]) for given in (0, 9)))
    found = describe(naive, 8)
    assert found.paths == [(0, 1), (3, 0, 4)]
    assert "query 3 <- 0 <- key 4 (relayed: one layer does not show it)" in "\n".join(lines(found))
    assert describe(naive, 8, layers=1).paths == [(0, 1)]
    assert found.shown_tokens == list(range(1, 8))


def test_what_comes_after_the_answer_is_told_from_the_answer() -> None:
    said = facts(command("strided(3)", "--length", "6").stdout)
    assert said["verdict"] == (
        "not safe for next-token training: tokens 1-3 would be predicted from what comes after; "
        "tokens 4-5 may be scored"
    )


def test_nothing_may_be_scored_under_full() -> None:
    assert facts(command("full").stdout)["verdict"].endswith("no token may be scored")


def test_queries_that_see_nothing_are_named() -> None:
    said = facts(command("causal & ~window(2)", "--length", "6").stdout)
    assert said["blind"] == "queries 0-1 see no key: attention gives zero there"
    assert "o its own input, carried along" in command("causal & ~window(2)", "--length", "6").stdout
    said = facts(command("causal & ~window(1)", "--length", "6").stdout)
    assert said["blind"] == "query 0 sees no key: attention gives zero there"


def test_several_masks_are_layers_in_turn() -> None:
    out = command("causal & window(2)", "causal", "--length", "5").stdout
    assert out.startswith("causal & window(2), then causal: 5 tokens, 2 layers\n")
    assert "\nlayer 0: causal & window(2)\nq\\k" in out
    assert "\nreach through 2 layers\nq\\k" in out


def test_heads_are_shown_apart() -> None:
    out = command("heads(causal, window(1))", "--length", "5", "--heads", "2").stdout
    assert "\nhead 0: causal\nq\\k" in out
    assert "\nhead 1: window(1)\nq\\k" in out


def test_long_masks_are_said_and_not_drawn() -> None:
    out = command("causal & window(128)", "--length", "1024", "--layers", "3").stdout
    assert "q\\k" not in out
    assert facts(out)["last query"] == "token 1023 sees 896-1023; through 3 layers 642-1023, at most 381 back"


@pytest.mark.parametrize("length", ["24", "25"])
def test_no_line_is_wider_than_a_terminal(length: str) -> None:
    out = command("window(3) | ~causal", "--length", length, "--layers", "3").stdout
    assert ("q\\k" in out) == (length == "24")
    assert max(map(len, out.splitlines())) <= 80


def test_json_holds_the_figures() -> None:
    ran = command("causal & window(3) | prefix(2)", "--length", "7", "--layers", "3", "--json")
    assert json.loads(ran.stdout) == {
        "masks": ["causal & window(3) | prefix(2)"],
        "length": 7,
        "layers": 3,
        "heads": 1,
        "pairs": 49,
        "reached": [26, 29, 29],
        "last_query": {"allowed": [0, 1, 4, 5, 6], "reached": [0, 1, 2, 3, 4, 5, 6]},
        "queries_that_see_nothing": [],
        "queries_reached_by_later_keys": [0],
        "tokens_shown": [1],
        "paths": [[0, 1]],
        "safe": False,
        "picture": None,
    }


def test_the_picture_is_written_and_named(tmp_path: Path) -> None:
    ran = command("causal", "--out", str(tmp_path / "x.png"))
    assert ran.exit_code == 0
    assert ran.stdout.endswith(f"\npicture     {tmp_path / 'x.png'}\n")
    assert imread(tmp_path / "x.png").shape[2] == 4


def test_an_existing_file_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"old")
    ran = command("causal", "--out", str(path))
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.endswith("x.png exists; name another file, or replace it with --force\n")
    assert path.read_bytes() == b"old"
    assert command("causal", "--out", str(path), "--force").exit_code == 0
    assert path.read_bytes() != b"old"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["causl"], "unknown pattern 'causl'"),
        (["causal &"], "mask: cannot read"),
        (["documents(3)"], "documents needs a tensor"),
        (["causal", "--length", "0"], "length: expected an integer from 1 to 4096, got 0"),
        (["causal", "--layers", "0"], "layers: expected an integer from 1 to 1000, got 0"),
        (["causal", "full", "--layers", "3"], "layers: expected a multiple of the 2 masks"),
        (["heads(causal, full)", "--heads", "3"], "heads: expected one mask per head"),
        (["causal", "--heads", "0"], "heads: expected an integer of at least 1, got 0"),
        (["causal", "--heads=-3"], "heads: expected an integer of at least 1, got -3"),
        (["causal", "--out", "x.gif"], "path: expected a name that ends in .png or .svg"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_with_one_line_and_status_two(words: list[str], message: str) -> None:
    ran = command(*words)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("arbprob mask: error: ")
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_a_folder_where_the_picture_should_go_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    ran = command("causal", "--out", str(tmp_path / "x.png"), "--force")
    assert ran.exit_code == 2
    assert ran.stderr == f"arbprob mask: error: path: {str(tmp_path / 'x.png')!r:.100} is a folder; name a file\n"
