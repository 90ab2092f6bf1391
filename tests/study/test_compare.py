"""Groups against a baseline: numbers, warnings, refusals, the table and the files."""

import csv
import io
import json
import math
import re

import numpy as np
import pytest
import scipy.stats

from pit_jax import cli
from pit_jax.errors import ConfigError
from pit_jax.study import export, report
from pit_jax.study.compare import compare
from pit_jax.study.summary import sentences, uncounted

from .fake_runs import fake_run, fake_sweep

PIT = [0.91, 0.93, 0.92, 0.95, 0.90, 0.94, 0.96]
VIT = [0.90, 0.93, 0.90, 0.92, 0.89, 0.92, 0.92]


def pair(path, pit=PIT, vit=VIT, first=0):
    """PiT and ViT/2 runs of as many seeds; ViT/2's seeds begin with `first`."""
    for seed, value in enumerate(pit):
        fake_run(path / f"pit{seed}", value, seed)
    for seed, value in enumerate(vit, first):
        fake_run(path / f"vit{seed}", value, seed, model__patch=2)
    return path


def command(capsys, *words):
    code = cli.run(["compare", *map(str, words)])
    output = capsys.readouterr()
    assert output.err.count("\n") == (code != 0), output.err
    return code, output.out, output.err


def test_means_differences_and_p_values_are_scipys(tmp_path):
    found = compare([pair(tmp_path)], baseline="ViT/2")
    pit, vit = found.entries
    assert (pit.label, vit.label, found.baseline) == ("PiT", "ViT/2", "ViT/2")
    assert pit.mean == pytest.approx(np.mean(PIT))
    assert vit.interval == pytest.approx(
        scipy.stats.t.interval(0.95, 6, np.mean(VIT), scipy.stats.sem(VIT))
    )
    assert vit.difference is None
    test = scipy.stats.ttest_rel(PIT, VIT)
    assert pit.p_t == pytest.approx(test.pvalue)
    assert pit.difference.interval == pytest.approx(tuple(test.confidence_interval()))


def test_p_values_are_corrected_for_the_number_of_comparisons(tmp_path):
    rng = np.random.default_rng(0)
    for patch in (1, 2, 4):
        for seed in range(6):
            value = 0.9 + 0.01 * patch + 0.01 * rng.normal()
            fake_run(tmp_path / f"{patch}s{seed}", value, seed, model__patch=patch)
    first, *others = compare([tmp_path]).entries
    assert (first.p_t, first.p_permutation) == (None, None)
    small, large = sorted(others, key=lambda e: e.difference.p_t)
    assert small.p_t == pytest.approx(min(1, 2 * small.difference.p_t))
    assert large.p_t == pytest.approx(max(small.p_t, large.difference.p_t))
    notes = "\n".join(compare([tmp_path]).notes)
    assert "corrected for 2 comparisons (Holm)" in notes
    assert "smallest corrected p is 0.0625" in notes  # 2 · 2 / 2^6
    assert "it would take 7 seeds" in notes


def test_below_six_seeds_there_is_no_p_and_the_reason(tmp_path):
    found = compare([pair(tmp_path, PIT[:3], VIT[:3])])
    assert found.entries[1].p_t is None
    assert any(
        "No p-values below 6 seeds: with 3 pairs the smallest p of a permutation test is 0.25" in n
        for n in found.notes
    )


def test_one_seed_has_no_interval_and_no_verdict(tmp_path):
    found = compare([pair(tmp_path, PIT[:1], VIT[:1])])
    assert found.entries[0].interval is None
    assert found.entries[1].difference.interval is None
    assert any("One seed each" in note for note in found.notes)
    told = " ".join(sentences(found))
    assert "PiT 91.00 % (one seed)" in told
    assert "the differences have no intervals" in told


def test_other_seeds_are_compared_unpaired_and_it_says_so(tmp_path):
    found = compare([pair(tmp_path, PIT[:3], VIT[:3], first=3)])
    test = scipy.stats.ttest_ind(VIT[:3], PIT[:3], equal_var=False)
    assert found.entries[1].difference.interval == pytest.approx(tuple(test.confidence_interval()))
    assert any("independent groups (Welch)" in note for note in found.notes)
    assert any("No p-values below 6 seeds a group" in note for note in found.notes)


def test_a_group_that_could_not_be_tested_changes_nothing_for_those_that_were(tmp_path):
    """Neither what their p could be, nor their number."""
    pair(tmp_path, PIT[:6], [value - 0.02 - 0.001 * i for i, value in enumerate(PIT[:6])])
    for seed in range(3):
        fake_run(tmp_path / f"few{seed}", 0.5 + 0.01 * seed, seed, model__patch=4)
    found = compare([tmp_path], baseline="PiT")
    by_label = {entry.label: entry for entry in found.entries}
    assert by_label["ViT/2"].p_permutation == 2 / 2**6
    notes = "\n".join(found.notes)
    assert "corrected for 1 comparison (Holm)" in notes
    assert "cannot fall below" not in notes
    assert "ViT/4: no p-value below 6 seeds." in notes


def test_a_tie_is_a_comparison_too(tmp_path):
    """Holm counts it for the t-test, which has no t where nothing differs."""
    pair(tmp_path, PIT[:6], PIT[:6])
    for seed, value in enumerate(PIT[:6]):
        fake_run(tmp_path / f"third{seed}", value - 0.1 - 0.001 * seed, seed, model__patch=4)
    by_label = {entry.label: entry for entry in compare([tmp_path], baseline="PiT").entries}
    tie, third = by_label["ViT/2"], by_label["ViT/4"]
    assert (tie.p_t, tie.p_permutation) == (1, 1)
    assert third.p_t == pytest.approx(2 * third.difference.p_t)


def test_a_difference_over_some_seeds_says_which(tmp_path):
    found = compare([pair(tmp_path, PIT[:4], VIT[1:3], first=1)])
    assert found.entries[1].difference.count == 2
    assert "ViT/2: the difference uses only the seeds that both have, 1, 2." in found.notes


def test_words_claim_no_more_than_the_interval(tmp_path):
    told = " ".join(sentences(compare([pair(tmp_path / "a")])))
    assert "ViT/2 is 1.86 points below PiT" in told
    assert "which excludes 0" in told
    told = " ".join(
        sentences(compare([pair(tmp_path / "b", [0.9, 0.95, 0.93], [0.95, 0.92, 0.93])]))
    )
    assert "which includes 0: these runs cannot tell the two apart" in told


def test_a_run_that_is_not_finite_is_told_and_left_out(tmp_path):
    pair(tmp_path, PIT[:3], VIT[:2])
    fake_run(tmp_path / "z-nan", math.nan, 2, model__patch=2)
    found = compare([tmp_path])
    assert list(found.entries[1].values) == [0, 1]
    assert any("not finite in z-nan" in note for note in found.notes)
    assert json.loads(export.to_json(found))["groups"][1]["runs"][2]["result"]["eval/loss"] is None


def test_a_missing_metric_is_told(tmp_path):
    pair(tmp_path, PIT[:2], VIT[:2])
    fake_run(tmp_path / "z-never", None, 2, model__patch=2)
    found = compare([tmp_path])
    assert found.metric == "eval/accuracy"
    assert "ViT/2: no eval/accuracy in z-never" in found.notes
    with pytest.raises(ConfigError, match=r"eval/acc: no run has it; did you mean eval/accuracy\?"):
        compare([tmp_path], metric="eval/acc")


def test_a_group_without_any_value_is_no_baseline(tmp_path):
    fake_run(tmp_path / "a", math.nan)
    fake_run(tmp_path / "b", 0.5, model__patch=2)
    with pytest.raises(ConfigError, match=r"baseline 'PiT' has no finite eval/accuracy"):
        compare([tmp_path])
    assert compare([tmp_path], "ViT/2").entries[0].difference is None


def test_a_baseline_that_is_not_there_is_refused(tmp_path):
    pair(tmp_path, PIT[:1], VIT[:1])
    assert compare([tmp_path], "patch=2").baseline == "ViT/2"
    with pytest.raises(ConfigError, match=r"'vit/2' is not one of 'PiT', 'ViT/2'; did you mean"):
        compare([tmp_path], "vit/2")


def test_different_tasks_are_refused_unless_a_metric_is_named(tmp_path):
    fake_run(tmp_path / "a", 0.9)
    fake_run(tmp_path / "b", 0.8, task="mae")
    with pytest.raises(ConfigError, match=r"different tasks, 'classification' \(a\) and 'mae' \(b"):
        compare([tmp_path])
    found = compare([tmp_path], metric="eval/loss")
    assert len(found.entries) == 2
    assert any("of different tasks: classification, mae" in note for note in found.notes)


def test_runs_that_others_start_from_are_left_out(tmp_path):
    fake_run(tmp_path / "before", None, task="mae")
    fake_run(tmp_path / "tuned", 0.9, init_from=str(tmp_path / "before"))
    fake_run(tmp_path / "scratch", 0.8)
    found = compare([tmp_path])
    assert [e.label for e in found.entries] == ["init_from=none", "init_from=PiT mae"]
    assert "left out, as others needed it: before" in found.notes


def test_a_classifier_that_others_are_measured_with_is_left_out(tmp_path):
    fake_run(tmp_path / "classifier", 0.9)
    for patch in (1, 2):
        features = {"eval__features": str(tmp_path / "classifier")}
        fake_run(tmp_path / f"d{patch}", 0.5, task="mae", model__patch=patch, **features)
    found = compare([tmp_path])
    assert [run.name for run in found.runs] == ["d1", "d2"]
    assert "left out, as others needed it: classifier" in found.notes


def test_shards_on_several_disks_are_one_study(tmp_path):
    published = [{"label": "patch=2", "metric": "eval/accuracy", "value": 0.836}]
    points = {"patch=1,seed=0": "p1", "patch=2,seed=0": "p2", "patch=4,seed=0": "p4"}
    for patch in (1, 2):
        fake_run(tmp_path / f"disk{patch}" / f"p{patch}", 0.9, model__patch=patch)
        fake_sweep(tmp_path / f"disk{patch}", points, "One question?", published)
    found = compare([tmp_path / "disk1", tmp_path / "disk2"])
    assert [[p["value"] for p in e.published] for e in found.entries] == [[], [0.836]]
    assert uncounted(found) == ["not counted: patch=4,seed=0 (not started)"]
    assert report.to_html(found).count("One question?") == 2  # title and heading


def test_other_code_or_machines_are_a_warning(tmp_path):
    fake_run(tmp_path / "a", 0.9)
    assert not compare([tmp_path]).warnings
    other = {"commit": "b" * 40, "devices": ["TPU v5e"], "versions": {"jax": "9"}}
    fake_run(tmp_path / "b", 0.8, 1, environment=other | {"uncommitted": "diff"})
    told = compare([tmp_path]).warnings
    assert told == [
        "commits differ: aaaaaaaaaa (a), bbbbbbbbbb (b)",
        "devices differ: 2 × cpu (a), 2 × TPU v5e (b)",
        "uncommitted changes differ between starts (b had some)",
        "versions of jax differ: 0.10.2 (a), 9 (b)",
    ]


def test_published_numbers_stand_beside_their_own_group_only(tmp_path):
    for patch in (1, 2):
        fake_run(tmp_path / f"p{patch}", 0.9, model__patch=patch)
    published = [
        {"label": "patch=2", "metric": "eval/accuracy", "value": 0.836},
        {"label": "ViT/2", "metric": "eval/fid", "value": 4.16},
        {"label": "PiT-T, CIFAR-100", "metric": "eval/accuracy", "value": 0.851},
    ]
    fake_sweep(tmp_path, {"patch=1,seed=0": "p1", "patch=2,seed=0": "p2"}, "", published)
    found = compare([tmp_path])
    assert [[p["value"] for p in e.published] for e in found.entries] == [[], [0.836]]
    assert [p["value"] for p in found.elsewhere] == [4.16, 0.851]


def test_features_made_by_hand_stand_beside_the_runs(capsys, tmp_path):
    pair(tmp_path, PIT[:3], VIT[:3])
    fake_sweep(tmp_path, {f"{n}{s}, seed {s}": f"{n}{s}" for n in ("pit", "vit") for s in "012"})
    rows = [
        {"label": "HOG", "metric": "eval/accuracy", "value": 0.875, "seconds": 1.0},
        {"label": "SIFT", "metric": "eval/linear_accuracy", "value": 0.5},
    ]
    data = {"data.name": "digits"}
    (tmp_path / "handmade.json").write_text(
        json.dumps({"schema": 1, "scale": "tiny", "data": data, "rows": rows})
    )
    _, out, _ = command(capsys, tmp_path, "--json", tmp_path / "r.json")
    assert re.search(r"HOG +– +87.50 +–", out)
    assert "SIFT" not in out
    assert "Made by hand, not by a run, and measured once: HOG." in out
    assert [row["label"] for row in json.loads((tmp_path / "r.json").read_text())["handmade"]] == [
        "HOG"
    ]
    html = report.to_html(compare([tmp_path]))
    assert "<td>87.50</td>" in html
    assert "HOG 87.5;" in html or "; HOG 87.5" in html  # what the plot says
    (tmp_path / "handmade.json").write_text("{")
    _, out, _ = command(capsys, tmp_path)
    assert "left unread: " in out


def test_two_seeds_are_shown_without_an_interval(capsys, tmp_path):
    pair(tmp_path, PIT[:2], VIT[:2])
    _, out, _ = command(capsys, tmp_path)
    assert "±" not in out
    assert "Two seeds are too few for an interval." in out
    assert re.search(r"ViT/2 +90.00 +93.00", out)


def test_more_seeds_than_columns_are_lines(capsys, tmp_path):
    pair(tmp_path, PIT[:3], VIT + VIT, first=0)
    _, out, _ = command(capsys, tmp_path)
    assert "PiT, every value by seed: 0: 91.00, 1: 93.00, 2: 92.00" in out
    assert "13: 92.00" in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_table_fits_80_columns_and_gives_every_value(capsys, tmp_path):
    pair(tmp_path, PIT[:3], VIT[:3])
    long = "a label that is much longer than any table of this kind has room for [red], and more"
    fake_run(tmp_path / "long", 0.5, model__patch=4)
    fake_sweep(tmp_path, {f"{n}{s}, seed {s}": f"{n}{s}" for n in ("pit", "vit") for s in "012"})
    points = {f"{n}, seed {s}": f"{n}{s}" for n in ("pit", "vit") for s in "012"}
    fake_sweep(tmp_path, points | {long: "long"})
    code, out, _ = command(capsys, tmp_path, "--metric", "eval/accuracy")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"pit +3 +92.00 ± 2.48 +baseline", out)
    assert re.search(r"vit +3 +91.00 ± 4.30 +−1.00 ± 2.48", out)
    assert re.search(r"vit +90.00 +93.00 +90.00", out)
    assert "[red]" in re.sub(r"\s+", " ", out).replace(" ]", "]")
    assert re.search(r"30 M +250 +0.2", out)


def test_files_hold_every_run(capsys, tmp_path):
    pair(tmp_path, PIT[:2], VIT[:2])
    fake_run(tmp_path / "half", None, 5, state="running")
    paths = [tmp_path / "r.csv", tmp_path / "r.json"]
    code, out, _ = command(capsys, tmp_path, "--csv", paths[0], "--json", paths[1])
    assert code == 0
    assert "not counted: half (running, step 40)" in out
    rows = list(csv.DictReader(io.StringIO(paths[0].read_text())))
    assert [(r["group"], r["seed"], r["model.patch"], r["eval/accuracy"]) for r in rows] == [
        ("PiT", "0", "1", "0.91"),
        ("PiT", "1", "1", "0.93"),
        ("ViT/2", "0", "2", "0.9"),
        ("ViT/2", "1", "2", "0.93"),
    ]
    assert rows[0]["parameters"] == "1000"
    held = json.loads(paths[1].read_text())
    assert held["made"]["commit"] == "a" * 40
    assert held["unfinished"] == [{"run": "half", "state": "running, step 40"}]
    assert held["groups"][1]["difference"]["mean"] == pytest.approx(-0.005)
    assert held["groups"][1]["seeds"] == {"0": 0.9, "1": 0.93}


def test_many_runs_that_never_started_are_one_line(tmp_path):
    fake_run(tmp_path / "a", 0.5)
    fake_sweep(tmp_path, {"seed=0": "a"} | {f"seed={s}": f"none{s}" for s in range(1, 9)})
    (line,) = uncounted(compare([tmp_path]))
    assert line == "not counted: 8 runs (not started), seed=1 the first of them"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "the following arguments are required: DIR"),
        (["tests"], "is no run and no sweep"),
        (["tests", "--out", "report.pdf"], "a report is an HTML file, e.g. report.html"),
        (["tests", "--csv", "/proc/none/x.csv"], "--csv /proc/none/x.csv cannot be written"),
        (["tests", "--csv", "x", "--json", "x"], "--csv and --json are both x"),
        (["tests", "--basline", "x"], "did you mean --baseline?"),
        (["tests", "--config.model.width=3"], "unexpected argument --config.model.width=3"),
    ],
)
def test_mistakes_are_one_line(capsys, words, sentence):
    code, _, err = command(capsys, *words)
    assert code == 2
    assert sentence in err


def test_a_baseline_without_a_value_names_one_that_has(tmp_path):
    fake_run(tmp_path / "a", float("nan"))
    fake_run(tmp_path / "b", 0.5, model__patch=2)
    with pytest.raises(ConfigError, match="'PiT' has no finite eval/accuracy: write --baseline Vi"):
        compare([tmp_path])
    with pytest.raises(ConfigError, match="has no finite eval/accuracy, nor has any other"):
        compare([tmp_path / "a"])


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ((0.05, 0.07), "PiT found little of the image's two dimensions in these runs"),
        ((-0.06, -0.04), "PiT found nothing of the image's two dimensions in these runs"),
        ((0.9,), "PiT found the image's two dimensions in these runs"),
        ((0.91, 0.93, 0.92), "PiT found the image's two dimensions: "),
        ((0.4, 0.5, 0.45), "PiT found some of the image's two dimensions: "),
        ((0.3, -0.2, 0.01), "PiT has not been shown to find the image's two dimensions: "),
    ],
)
def test_it_answers_whether_the_two_dimensions_were_found(tmp_path, found, words):
    for seed, r2 in enumerate(found):
        run = fake_run(tmp_path / f"s{seed}", 0.9, seed)
        run.write_status(
            state="done", step=40, result={"eval/accuracy": 0.9, "eval/locality/position_r2": r2}
        )
    compared = compare([tmp_path])
    label = compared.entries[0].label
    (sentence,) = [s for s in sentences(compared) if "two dimensions" in s]
    assert sentence.startswith(words.replace("PiT", label, 1))
    assert ("95 % interval" in sentence) == (len(found) >= 3)
    assert f"R² {sum(found) / len(found):.2f}".replace("-", "−") in sentence


def test_it_answers_nothing_of_positions_that_were_told(tmp_path):
    run = fake_run(tmp_path / "a", 0.9, model__position="sincos2d")
    run.write_status(
        state="done", step=40, result={"eval/accuracy": 0.9, "eval/locality/position_r2": 1.0}
    )
    assert not any("two dimensions" in s for s in sentences(compare([tmp_path])))
