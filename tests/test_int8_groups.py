from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino
import pytest

from madewithml import checkpoint, engines, exporting, int8_groups, tokenization
from tests.conftest import TOKEN_ROWS


@pytest.fixture(scope="module")
def found(checkpoint_folder: Path) -> checkpoint.Checkpoint:
    return checkpoint.read(checkpoint_folder)


@pytest.fixture(scope="module")
def mapped(graph: Path) -> Path:
    exporting.to_openvino(graph, graph.with_suffix(".xml"))
    return graph.with_suffix(".xml")


@pytest.fixture(scope="module")
def rounded(mapped: Path) -> int8_groups.Rounding:
    return int8_groups.rounding_of(mapped, seen=int8_groups.observe(mapped, rows=TOKEN_ROWS, pad_id=0), group=128)


def rounded_products(path: Path) -> list[str]:
    return [
        node.get_friendly_name()
        for node in openvino.Core().read_model(str(path)).get_ordered_ops()
        if node.get_type_name() == "MatMul" and node.input_value(1).get_node().get_type_name() == "Reshape"
    ]


@pytest.mark.parametrize("size", [32, 128])
def test_logits_stay_what_they_were_whatever_else_is_in_the_batch(
    mapped: Path, expected: npt.NDArray[np.float32], tmp_path: Path, size: int
) -> None:
    seen = int8_groups.observe(mapped, rows=TOKEN_ROWS, pad_id=0)
    int8_groups.write(mapped, tmp_path / "model.xml", int8_groups.rounding_of(mapped, seen=seen, group=size))
    engine = engines.OpenVinoEngine(tmp_path / "model.xml", precision=f"int8-mixed-{size}", threads=1, max_length=64)
    together = engine.logits(*tokenization.pad(TOKEN_ROWS, pad_id=0))
    alone = [engine.logits(*tokenization.pad([row], pad_id=0))[0] for row in TOKEN_ROWS]
    np.testing.assert_allclose(together, expected, atol=0.05)
    assert np.abs(together - expected).max() > 0, "nothing was rounded"
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-4)


def test_weights_are_int8_but_for_the_last_layer(mapped: Path, rounded: int8_groups.Rounding, tmp_path: Path) -> None:
    int8_groups.write(mapped, tmp_path / "model.xml", rounded)
    assert len(rounded_products(tmp_path / "model.xml")) == 6
    assert all("/layers.0/" in name for name in rounded_products(tmp_path / "model.xml"))
    sizes = [path.with_suffix(".bin").stat().st_size for path in (mapped, tmp_path / "model.xml")]
    assert sizes[1] < sizes[0]


def test_what_goes_into_a_product_is_seen_without_padding(mapped: Path) -> None:
    seen = int8_groups.observe(mapped, rows=TOKEN_ROWS, pad_id=0)
    tokens = sum(len(row) for row in TOKEN_ROWS)
    assert {len(activations.sample) for activations in seen.values()} == {tokens}
    for activations in seen.values():
        np.testing.assert_allclose(activations.moments, activations.sample.T @ activations.sample, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(activations.largest, np.abs(activations.sample).max(axis=0))


def test_the_most_delicate_products_are_left_as_they_are(
    mapped: Path, rounded: int8_groups.Rounding, tmp_path: Path
) -> None:
    names = int8_groups.mixed(mapped, rounded, rows=TOKEN_ROWS, pad_id=0)
    assert 0 < len(names) < len(rounded.products)
    int8_groups.write(mapped, tmp_path / "mixed.xml", rounded, names=names)
    assert sorted(rounded_products(tmp_path / "mixed.xml")) == names


def test_a_graph_that_pads_is_rounded_too(
    found: checkpoint.Checkpoint, expected: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    exporting.export(found, tmp_path / "padded.onnx", may_be_ragged=False)
    exporting.to_openvino(tmp_path / "padded.onnx", tmp_path / "padded.xml")
    seen = int8_groups.observe(tmp_path / "padded.xml", rows=TOKEN_ROWS, pad_id=0)
    made = int8_groups.rounding_of(tmp_path / "padded.xml", seen=seen, group=32)
    int8_groups.write(tmp_path / "padded.xml", tmp_path / "int8.xml", made)
    engine = engines.OpenVinoEngine(tmp_path / "int8.xml", precision="int8-mixed-32", threads=1, max_length=64)
    assert engine.pads
    logits = engine.logits(*tokenization.pad(TOKEN_ROWS, pad_id=0))
    # Of logits up to 4.
    np.testing.assert_allclose(logits, expected, atol=0.05)
    assert logits.argmax(axis=1).tolist() == expected.argmax(axis=1).tolist()
