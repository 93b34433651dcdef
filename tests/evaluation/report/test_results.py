"""Results of one evaluation take the place of another's, whole."""

from pathlib import Path

from aqnet.evaluation.report import results


def test_a_folder_that_is_used_again_keeps_nothing_of_the_evaluation_before(tmp_path: Path):
    """Such as the scores at stations, of an evaluation that was given some."""
    for name in ("metrics.json", "metrics.csv", "days.npz", "reliability.csv", "stations.csv"):
        (tmp_path / name).write_text("older")
    for name in ("pictures", "forecasts.zarr"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "older").touch()
    (tmp_path / "mine.txt").touch()
    with results.beside(tmp_path) as place:
        for name in ("metrics.json", "metrics.csv", results.REPORT):
            (place / name).write_text("newer")
        results.publish(place, tmp_path)
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    newer = dict.fromkeys(("metrics.json", "metrics.csv", results.REPORT), "newer")
    assert found == {**newer, "mine.txt": ""}
