"""The layers that oneDNN works for are the layers whose place they take."""

import copy

import pytest
import torch
from streamingvlm.model.linear_layers import GatedMLP, WideLinear, can_widen, forget_copies, widen_
from torch import nn
from transformers.activations import ACT2FN

from streamingvlm.inference.session import StreamingSession
from streamingvlm.model import loading
from streamingvlm.model.loading import load_model

needs_one_dnn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch brings no oneDNN along"
)
NUM_ROWS = (1, 15, 16, 31, 32, 33, 64, 200, 255, 256, 257, 300, 512, 513, 777)


class MLP(nn.Module):
    """As transformers has it in all families."""

    def __init__(self, size, inner_size, *, bias, activation="silu"):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(size, inner_size, bias=bias) for _ in range(2))
        self.down_proj = nn.Linear(inner_size, size, bias=bias)
        self.act_fn = ACT2FN[activation]

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)


@needs_one_dnn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", [(256, 768), (768, 256), (128, 128), (60, 100)])
def test_a_layer_is_the_same_of_any_number_of_rows(sizes, bias):
    plain = nn.Linear(*sizes, bias=bias)
    wide = WideLinear.of(plain)
    with torch.inference_mode():
        for num_rows in NUM_ROWS:
            x = torch.randn(num_rows, sizes[0])
            torch.testing.assert_close(wide(x), plain(x), atol=1e-5, rtol=1e-5)


@needs_one_dnn
@pytest.mark.parametrize("bias", [False, True])
def test_a_gated_mlp_is_the_same_of_any_number_of_rows(bias):
    whole = nn.ModuleDict({"mlp": MLP(128, 384, bias=bias)})
    rows = [torch.randn(num_rows, 128) for num_rows in NUM_ROWS]
    with torch.inference_mode():
        expected = [whole["mlp"](x) for x in rows]
        widen_(whole)
        assert type(whole["mlp"]) is GatedMLP
        for x, right in zip(rows, expected, strict=True):
            torch.testing.assert_close(whole["mlp"](x), right, atol=1e-5, rtol=1e-5)


@needs_one_dnn
def test_what_a_layer_keeps_of_its_weight_follows_the_weight():
    plain = nn.ModuleDict({"mlp": MLP(256, 768, bias=False)})
    wide = nn.ModuleDict({"mlp": GatedMLP(plain["mlp"])})
    widen_(wide)
    rows = [torch.randn(num_rows, 256) for num_rows in (1, 2, 4, 9, 100)]

    def check():
        with torch.inference_mode():
            for x in rows:
                torch.testing.assert_close(wide["mlp"](x), plain["mlp"](x), atol=1e-5, rtol=1e-5)

    check()
    optimizer = torch.optim.SGD(plain.parameters(), lr=100.0)  # in place, as training does it
    plain["mlp"](rows[-1]).square().mean().backward()
    optimizer.step()
    check()
    plain.load_state_dict({name: torch.randn_like(weight) / 16 for name, weight in plain.state_dict().items()})
    check()
    for layer in (wide["mlp"].up_proj, plain["mlp"].up_proj):  # another tensor in its place
        layer.weight = nn.Parameter(torch.ones(768, 256) / 256)
    check()
    plain["mlp"].down_proj.weight.data += 1  # what torch does not count as a change
    forget_copies()
    check()
    forget_copies()
    check()
    assert copy.deepcopy(wide).state_dict().keys() == plain.state_dict().keys()


def test_a_stream_that_is_opened_has_the_weights_as_they_are_by_then(monkeypatch):
    frames = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)

    def replies(model):
        with StreamingSession(model) as session:
            return [session.step(frames).text for _ in range(3)]

    def change_(model):
        for layer in model.text_model.layers:  # in the manner of what merges adapters
            layer.mlp.up_proj.weight.data *= -1

    wide = load_model("pitch", device="cpu")
    before = replies(wide)
    change_(wide)
    monkeypatch.setattr(loading, "can_widen", lambda device, dtype: False)
    plain = load_model("pitch", device="cpu")
    change_(plain)
    assert before != replies(wide) == replies(plain)


@needs_one_dnn
@pytest.mark.parametrize("sizes", [(64, 128), (2048, 1024)])
def test_small_and_large_matrices_are_kept_once(sizes):
    layer = WideLinear.of(nn.Linear(*sizes))
    with torch.inference_mode():
        assert not layer.has_copy
    assert not WideLinear.of(nn.Linear(256, 768)).has_copy  # outside of inference it may be trained
    with torch.inference_mode():
        assert not WideLinear.of(nn.Linear(256, 768)).has_copy  # what is born in there, torch counts no changes of


@needs_one_dnn
def test_rows_that_lie_apart_in_memory_are_taken_as_they_are():
    plain = nn.Linear(256, 256)
    x = torch.randn(256, 300).T[:256]
    with torch.inference_mode():
        torch.testing.assert_close(WideLinear.of(plain)(x), plain(x), atol=1e-5, rtol=1e-5)


@needs_one_dnn
def test_few_rows_several_axes_and_other_types_are_torchs_own(monkeypatch):
    wide = WideLinear.of(nn.Linear(256, 256))
    monkeypatch.setattr(wide, "product", lambda *_: pytest.fail("this was not to be oneDNN's"))
    with torch.inference_mode():
        assert wide(torch.randn(4, 256)).shape == (4, 256)
        assert wide(torch.randn(100, 8, 256)).shape == (100, 8, 256)
        with torch.autocast("cpu", torch.bfloat16):
            assert wide(torch.randn(200, 256).bfloat16()).dtype == torch.bfloat16
    wide(torch.randn(200, 256)).sum().backward()
    assert wide.weight.grad is not None


@needs_one_dnn
def test_many_rows_are_one_dnns(monkeypatch):
    plain = nn.Linear(256, 256)
    wide, calls = WideLinear.of(plain), []
    product = wide.product
    monkeypatch.setattr(wide, "product", lambda x: calls.append(len(x)) or product(x))
    with torch.inference_mode():
        wide(torch.randn(600, 256))
    assert calls == [256, 256, 96]


def test_layers_share_the_weights_and_their_names_and_what_is_no_such_layer_stays():
    model = nn.ModuleDict({"mlp": MLP(8, 16, bias=True), "other": MLP(8, 16, bias=True, activation="gelu")})
    model["norm"] = nn.LayerNorm(8)
    weights, names = dict(model.named_parameters()), list(model.state_dict())
    widen_(model)
    assert list(model.state_dict()) == names
    assert all(weight is weights[name] for name, weight in model.named_parameters())
    assert type(model["mlp"]) is GatedMLP and type(model["other"]) is MLP and type(model["norm"]) is nn.LayerNorm
    assert type(model["other"].up_proj) is WideLinear
    assert isinstance(model["mlp"].up_proj, nn.Linear)  # what looks for linear layers, as adapters do, finds them


@needs_one_dnn
def test_an_adapter_in_an_mlp_is_in_effect():
    model = nn.ModuleDict({"mlp": MLP(128, 384, bias=False)})
    widen_(model)
    plain, x = model["mlp"].up_proj, torch.randn(200, 128)

    class Twice(nn.Module):
        def forward(self, x):
            return 2 * plain(x)

    with torch.inference_mode():
        before = model["mlp"](x)
        model["mlp"].up_proj = Twice()
        torch.testing.assert_close(model["mlp"](x), 2 * before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "kinds"), [("float32", {WideLinear}), ("bfloat16", {nn.Linear})])
def test_a_model_in_float32_takes_them_where_the_cpu_has_wider_instructions(monkeypatch, dtype, kinds):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    model = load_model("pitch", device="cpu", dtype=dtype).hf.model
    assert {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)} == kinds


def test_elsewhere_a_model_keeps_its_layers(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not can_widen(torch.device("cpu"), torch.float32)
    model = load_model("pitch", device="cpu").hf.model
    assert not any(isinstance(layer, WideLinear | GatedMLP) for layer in model.modules())


@needs_one_dnn
def test_a_model_reads_the_same_with_them_and_without(monkeypatch):
    wide = load_model("pitch", device="cpu")
    monkeypatch.setattr(loading, "can_widen", lambda device, dtype: False)
    plain = load_model("pitch", device="cpu")
    widen_(wide.hf.model)
    frames = torch.randint(0, 256, (8, 3, 112, 112), dtype=torch.uint8)
    with torch.inference_mode():
        seen, expected = (model.vision.features(frames).embeddings for model in (wide, plain))
        torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-4)
        for one, other in zip(wide.text_model.layers, plain.text_model.layers, strict=True):
            hidden = torch.randn(300, 256)
            torch.testing.assert_close(one.mlp(hidden), other.mlp(hidden), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(one.self_attn.q_proj(hidden), other.self_attn.q_proj(hidden), atol=1e-4, rtol=0)
