"""Reading ONNX models: what must be kept, and each way in which a file can be bad."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from burnish.frontends.onnx_file import import_onnx
from burnish.frontends.opset import raise_opset
from burnish.ir.errors import InputError, ModelError, UnsupportedError
from burnish.ir.graph import MODULE, SOURCE
from onnx import TensorProto, helper, numpy_helper, parser

MLP = """
<ir_version: 8, opset_import: ["" : 17]>
mlp (float[batch, 4] x) => (float[batch, 2] y)
<float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}>
{ h = MatMul (x, w)
  y = Relu (h) }
"""


def model(text: str) -> onnx.ModelProto:
    return parser.parse_model(text)


def run(proto: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([i.name for i in session.get_inputs()], inputs, strict=True)))


def proto_of(graph: onnx_ir.Model) -> onnx.ModelProto:
    proto = onnx_ir.to_proto(graph)
    onnx.checker.check_model(proto)
    return proto


@pytest.fixture
def file(tmp_path: Path) -> Path:
    onnx.save(model(MLP), tmp_path / "mlp.onnx")
    return tmp_path / "mlp.onnx"


@pytest.fixture
def external(tmp_path: Path) -> Path:
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [weight],
    )
    path = tmp_path / "big.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        path,
        save_as_external_data=True,
        location="big.data",
        size_threshold=0,
    )
    return path


# What is kept


@pytest.mark.parametrize("kind", ["path", "string", "proto", "ir"])
def test_every_kind_of_source(file: Path, kind: str) -> None:
    source = {"path": file, "string": str(file), "proto": onnx.load(file), "ir": onnx_ir.load(file)}[kind]
    imported = import_onnx(source)
    assert imported.route == "onnx"
    assert [(s.name, s.dtype, s.shape) for s in imported.signature.inputs] == [("x", "FLOAT", ("batch", 4))]
    assert [(s.name, s.dtype, s.shape) for s in imported.signature.outputs] == [("y", "FLOAT", ("batch", 2))]
    assert imported.source_size == 32
    x = np.arange(-4, 4, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(run(proto_of(imported.graph), x)[0], run(onnx.load(file), x)[0])


def test_the_callers_proto_is_not_changed() -> None:
    proto = model(MLP)
    before = proto.SerializeToString()
    imported = import_onnx(proto)
    for node in imported.graph.graph:
        node.op_type = "Sigmoid"
    assert proto.SerializeToString() == before


def test_the_callers_ir_model_is_not_changed(file: Path) -> None:
    source = onnx_ir.load(file)
    before = onnx_ir.to_proto(source).SerializeToString()
    weight = source.graph.initializers["w"].const_value
    imported = import_onnx(source)
    assert onnx_ir.to_proto(source).SerializeToString() == before
    assert source.graph.initializers["w"].const_value is weight
    assert imported.graph.graph.initializers["w"].const_value is weight


def test_external_data_stays_unread(external: Path) -> None:
    imported = import_onnx(external)
    tensor = imported.graph.graph.initializers["w"].const_value
    assert isinstance(tensor, onnx_ir.ExternalTensor) and tensor.raw is None
    assert imported.source_size == 64 * 64 * 4
    np.testing.assert_array_equal(tensor.numpy(), np.ones((64, 64), np.float32))


def test_external_data_is_found_from_another_folder(external: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(external.parent)
    imported = import_onnx(external.name)
    monkeypatch.chdir("/")
    tensor = imported.graph.graph.initializers["w"].const_value
    assert tensor is not None and tensor.numpy().sum() == 64 * 64


def test_lazy_weights_are_not_computed(file: Path) -> None:
    source = onnx_ir.load(file)

    def never() -> onnx_ir.Tensor:
        raise AssertionError("the weight was read")

    lazy = onnx_ir.LazyTensor(never, onnx_ir.DataType.FLOAT, onnx_ir.Shape([4, 2]), name="w")
    source.graph.initializers["w"].const_value = lazy
    assert import_onnx(source).graph.graph.initializers["w"].const_value is lazy


def test_inner_shapes_of_the_file_are_not_believed() -> None:
    proto = model(MLP)
    proto.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, 2]))
    imported = import_onnx(proto)
    (product, _) = imported.graph.graph
    assert str(product.outputs[0].shape) == "[batch,2]"


def test_a_stale_output_shape_is_corrected_and_a_name_is_kept() -> None:
    proto = model(MLP)
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert str(import_onnx(proto).graph.graph.outputs[0].shape) == "[batch,2]"
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "rows"
    assert str(import_onnx(proto).graph.graph.outputs[0].shape) == "[rows,2]"


def test_old_files_list_initializers_as_inputs() -> None:
    proto = model(MLP.replace("ir_version: 8", "ir_version: 3").replace('"" : 17', '"" : 8'))
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 2]))
    imported = import_onnx(proto)
    assert [v.name for v in imported.graph.graph.inputs] == ["x"]
    assert imported.graph.ir_version >= 10
    x = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(run(proto_of(imported.graph), x)[0], [[16, 20]] * 3)


def test_inputs_with_a_default_stay_inputs() -> None:
    proto = model(MLP)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 2]))
    imported = import_onnx(proto)
    assert [v.name for v in imported.graph.graph.inputs] == ["x", "w"]
    assert [s.name for s in imported.signature.inputs] == ["x"]
    assert any("default" in r.reason for r in imported.remarks)


@pytest.mark.parametrize("name", ["?", ""])
def test_dimensions_without_a_name_take_any_size(name: str) -> None:
    proto = model(MLP)
    proto.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    if name:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = name
    assert import_onnx(proto).signature.inputs[0].shape == ("?", 4)


def test_minus_one_takes_any_size() -> None:
    proto = model(MLP)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    imported = import_onnx(proto)
    assert imported.signature.inputs[0].shape == ("?", 4)
    x = np.ones((3, 4), np.float32)
    assert run(proto_of(imported.graph), x)[0].shape == (3, 2)


def test_modules_come_from_node_names_and_scopes() -> None:
    proto = model(MLP)
    proto.graph.node[0].name = "/model/layers.0/mlp/MatMul"
    proto.graph.node[1].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'model', 'model.act', 'relu']")
    imported = import_onnx(proto)
    assert [n.metadata_props[MODULE] for n in imported.graph.graph] == ["model.layers.0.mlp", "model.act"]
    assert imported.graph.graph[0].metadata_props[SOURCE] == "/model/layers.0/mlp/MatMul"


def test_unknown_domains_pass() -> None:
    proto = model(MLP.replace('["" : 17]', '["" : 17, "my.ops" : 3]').replace("Relu (h)", "my.ops.Twist <k = 3> (h)"))
    imported = import_onnx(proto)
    node = imported.graph.graph[1]
    assert (node.domain, node.op_type, imported.graph.opset_imports["my.ops"]) == ("my.ops", "Twist", 3)


def test_subgraphs_pass(silero_vad: Path) -> None:
    imported = import_onnx(silero_vad)
    branches = [a.as_graph() for n in imported.graph.graph if n.op_type == "If" for a in n.attributes.values()]
    original = [a.g for n in onnx.load(silero_vad).graph.node if n.op_type == "If" for a in n.attribute]
    assert sorted(len(g) for g in branches) == sorted(len(g.node) for g in original)


def test_sparse_constants_become_dense() -> None:
    values = numpy_helper.from_array(np.array([3, 4], np.float32), "s")
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [2], [1, 3]), [4])
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "s"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        sparse_initializer=[sparse],
    )
    imported = import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    np.testing.assert_array_equal(run(proto_of(imported.graph), np.zeros(4, np.float32))[0], [0, 3, 0, 4])


# Opsets


def test_the_opset_is_raised() -> None:
    imported = import_onnx(model(MLP))
    assert imported.graph.opset_imports[""] == 23
    assert [r.reason for r in imported.remarks] == ["opset raised from 17 to 23"]


def test_a_newer_opset_is_kept() -> None:
    assert import_onnx(model(MLP.replace('"" : 17', '"" : 25'))).graph.opset_imports[""] == 25


def test_the_opset_can_be_kept() -> None:
    imported = import_onnx(model(MLP), opset=None)
    assert imported.graph.opset_imports[""] == 17 and not imported.remarks


OLD = {
    "Softmax over the last axis": (11, "float[2, 3, 4] x", "float[2, 3, 4] y", "y = Softmax <axis = -1> (x)"),
    "Softmax of a matrix": (11, "float[2, 3, 4] x", "float[2, 3, 4] y", "y = Softmax <axis = 1> (x)"),
    "LogSoftmax by default": (11, "float[2, 3, 4] x", "float[2, 3, 4] y", "y = LogSoftmax (x)"),
    "axes of Squeeze": (11, "float[2, 1, 4] x", "float[2, 4] y", "y = Squeeze <axes = [1]> (x)"),
    "axes of Unsqueeze": (11, "float[2, 4] x", "float[2, 1, 4] y", "y = Unsqueeze <axes = [1]> (x)"),
    "axes of ReduceSum": (11, "float[2, 3] x", "float[2, 1] y", "y = ReduceSum <axes = [1]> (x)"),
    "axes of ReduceMean": (17, "float[2, 3] x", "float[2] y", "y = ReduceMean <axes = [1], keepdims = 0> (x)"),
    "all axes of ReduceMax": (17, "float[2, 3] x", "float[1, 1] y", "y = ReduceMax (x)"),
    "sizes of Split": (11, "float[5] x", "float[2] y", "y, z = Split <split = [2, 3]> (x)"),
    "halves of Split": (13, "float[6] x", "float[3] y", "y, z = Split (x)"),
    "limits of Clip": (10, "float[2, 3] x", "float[2, 3] y", "y = Clip <max = 0.5> (x)"),
    "pads and value": (10, "float[2, 3] x", "float[3, 5] y", "y = Pad <pads = [1, 0, 0, 2], value = 7.0> (x)"),
    "attributes of Slice": (9, "float[4] x", "float[2] y", "y = Slice <axes = [0], starts = [1], ends = [3]> (x)"),
    "TopK by attribute": (9, "float[2, 5] x", "float[2, 3] y", "y, z = TopK <k = 3> (x)"),
    "Dropout with a ratio": (10, "float[2, 3] x", "float[2, 3] y", "y = Dropout <ratio = 0.3> (x)"),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_old_forms_mean_the_same_later(name: str) -> None:
    opset, takes, gives, body = OLD[name]
    proto = model(f'<ir_version: 6, opset_import: ["" : {opset}]> g ({takes}) => ({gives}) {{ {body} }}')
    imported = import_onnx(proto)
    assert imported.graph.opset_imports[""] == 23, [r.reason for r in imported.remarks]
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(run(proto_of(imported.graph), x)[0], run(proto, x)[0])


KEPT = {
    "older than 7": (6, "float[2, 3] x", "float[2, 3] y", "y = Relu (x)"),
    "Upsample": (9, "float[1, 1, 2, 2] x, float[4] s", "float[a, b, c, d] y", "y = Upsample (x, s)"),
    "training mode": (
        9,
        "float[2, 3] x, float[3] s, float[3] b, float[3] m, float[3] v",
        "float[2, 3] y, float[3] w",
        "y, w, w2, w3, w4 = BatchNormalization (x, s, b, m, v)",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_has_no_later_form_keeps_its_opset(name: str) -> None:
    opset, takes, gives, body = KEPT[name]
    proto = model(f'<ir_version: 6, opset_import: ["" : {opset}]> g ({takes}) => ({gives}) {{ {body} }}')
    imported = import_onnx(proto)
    assert imported.graph.opset_imports[""] == opset
    assert any(r.kind == "skipped" and f"keeps opset {opset}" in r.reason for r in imported.remarks)


def test_local_functions_keep_the_opset() -> None:
    proto = model(
        """
        <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[2] x) => (float[2] y) { y = local.Twice (x) }
        <domain: "local", opset_import: ["" : 17]> Twice (a) => (b) { b = Add (a, a) }
        """
    )
    imported = import_onnx(proto)
    assert imported.graph.opset_imports[""] == 17
    np.testing.assert_array_equal(run(proto_of(imported.graph), np.ones(2, np.float32))[0], [2, 2])


def test_a_refused_model_is_left_alone() -> None:
    graph = onnx_ir.from_proto(
        model(
            """<ir_version: 6, opset_import: ["" : 9]> g (float[1, 1, 2, 2] x, float[4] s) => (float[1, 4] z)
            { y = Upsample (x, s)
              z = Squeeze <axes = [0, 1]> (y) }"""
        )
    )
    before = onnx_ir.to_proto(graph).SerializeToString()
    assert "Upsample" in (raise_opset(graph) or "")
    assert onnx_ir.to_proto(graph).SerializeToString() == before


# What is wrong


def says(error: pytest.ExceptionInfo[Exception], *words: str) -> None:
    for word in words:
        assert word in str(error.value), str(error.value)
    assert "fix:" in str(error.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        import_onnx(tmp_path / "absent.onnx")
    says(error, "absent.onnx", "no file")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        import_onnx(tmp_path)
    says(error, "folder")


def test_something_else() -> None:
    with pytest.raises(InputError) as error:
        import_onnx(3)  # type: ignore[arg-type]
    says(error, "int")


@pytest.mark.parametrize(
    "data", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", b"\x00" * 100, b"PK\x03\x04" * 50]
)
def test_not_an_onnx_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(data)
    with pytest.raises(ModelError) as error:
        import_onnx(tmp_path / "bad.onnx")
    says(error, "bad.onnx", "not an ONNX model")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file(file: Path, part: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ModelError) as error:
        import_onnx(file)
    says(error, "mlp.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file(file: Path) -> None:
    file.chmod(0)
    with pytest.raises(ModelError) as error:
        import_onnx(file)
    says(error, "cannot be read")


def test_missing_external_data(external: Path) -> None:
    (external.parent / "big.data").unlink()
    with pytest.raises(ModelError) as error:
        import_onnx(external)
    says(error, "big.data", "missing", "'w'")


def test_external_data_of_a_proto_in_memory(external: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    with pytest.raises(ModelError) as error:
        import_onnx(onnx.load(external, load_external_data=False))
    says(error, "path of its file")


def test_truncated_external_data(external: Path) -> None:
    data = external.parent / "big.data"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(ModelError) as error:
        import_onnx(external)
    says(error, "truncated", "'w'")


def test_truncated_inline_data() -> None:
    proto = model(MLP)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((4, 2), np.float32), "w"))
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    with pytest.raises(ModelError) as error:
        import_onnx(proto)
    says(error, "28 bytes", "32")


INVALID = {
    "a value that nothing makes": lambda g: g.node[1].input.__setitem__(0, "nowhere"),
    "a name made twice": lambda g: g.node[1].output.__setitem__(0, "h"),
    "no topological order": lambda g: g.node.append(g.node.pop(0)),
    "too many inputs": lambda g: g.node[1].input.extend(["x", "x"]),
    "an unknown attribute": lambda g: g.node[1].attribute.append(helper.make_attribute("alpha", 1.0)),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_graph(name: str) -> None:
    proto = model(MLP)
    INVALID[name](proto.graph)
    with pytest.raises(ModelError) as error:
        import_onnx(proto)
    says(error, "not valid")


def test_a_newer_format() -> None:
    proto = model(MLP)
    proto.ir_version = onnx.IR_VERSION + 1
    with pytest.raises(ModelError) as error:
        import_onnx(proto)
    says(error, "newer", str(onnx.IR_VERSION))


def test_a_newer_opset() -> None:
    proto = model(MLP)
    proto.opset_import[0].version = 999
    with pytest.raises(ModelError) as error:
        import_onnx(proto)
    says(error, "opset 999")


def test_a_map_as_input() -> None:
    proto = model(MLP)
    kind = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    proto.graph.input.append(helper.make_value_info("features", kind))
    with pytest.raises(UnsupportedError) as error:
        import_onnx(proto)
    says(error, "'features'", "map")


def test_an_operator_unknown_to_the_specification_is_told() -> None:
    proto = model(MLP)
    proto.graph.node[1].op_type = "SimplifiedRelu"
    imported = import_onnx(proto)
    assert any("SimplifiedRelu" in r.reason for r in imported.remarks)
    assert imported.graph.opset_imports[""] == 17
