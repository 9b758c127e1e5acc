"""What MLflow's page of system metrics is given of a training's manifest."""

from typing import Any

from tasks.tracking import system_metrics

PERFORMANCE: dict[str, Any] = {
    "first_step": 0,
    "step_s": 0.06,
    "data_wait_frac": 0.25,
    "cpu_frac": 0.9,
    "peak_resident_bytes": 900_000_000,
    "series": {
        "step": [9, 19],
        "unix_s": [1.7e9, 1.7e9 + 1.25],
        "images_per_second": [1000.0, 1100.0],
        "step_s": [0.064, 0.058],
        "data_wait_frac": [0.5, 0.0],
        "cpu_frac": [0.8, 1.0],
        "resident_bytes": [500_000_000, 800_000_000],
    },
}


def told(performance: dict[str, Any]) -> dict[str, list[tuple[int, int, float]]]:
    found: dict[str, list[tuple[int, int, float]]] = {}
    for one in system_metrics(performance):
        found.setdefault(one.key, []).append((one.step, one.timestamp, round(one.value, 6)))
    return found


def test_series_at_their_steps_and_times_in_the_units_that_names_say() -> None:
    first_ms, second_ms = 1_700_000_000_000, 1_700_000_001_250
    assert told(PERFORMANCE) == {
        "system/images_per_second": [(9, first_ms, 1000.0), (19, second_ms, 1100.0)],
        "system/step_seconds": [(9, first_ms, 0.064), (19, second_ms, 0.058)],
        "system/data_wait_percentage": [(9, first_ms, 50.0), (19, second_ms, 0.0)],
        "system/cpu_utilization_percentage": [(9, first_ms, 80.0), (19, second_ms, 100.0)],
        "system/resident_memory_megabytes": [(9, first_ms, 500.0), (19, second_ms, 800.0)],
        "system/peak_resident_memory_megabytes": [(19, second_ms, 900.0)],
    }


def test_a_gpu_has_lines_of_its_own_and_a_moment_without_an_answer_none() -> None:
    series = {**PERFORMANCE["series"], "gpu_frac": [None, 0.75], "gpu_bytes": [3_000_000, 4_000_000]}
    found = told({**PERFORMANCE, "series": series, "gpu_frac": 0.75, "peak_gpu_bytes": 5_000_000})
    assert [(step, value) for step, _, value in found["system/gpu_utilization_percentage"]] == [(19, 75.0)]
    assert [(step, value) for step, _, value in found["system/gpu_memory_megabytes"]] == [(9, 3.0), (19, 4.0)]
    assert [(step, value) for step, _, value in found["system/peak_gpu_memory_megabytes"]] == [(19, 5.0)]
