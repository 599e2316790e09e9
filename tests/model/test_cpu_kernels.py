"""The oneDNN layers compute what the layers they replace compute, and a model can do without them."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from streamingvlm.benchmark.random_weights import random_model
from streamingvlm.cache.kv_cache import KVPool
from streamingvlm.cli.architectures import architecture_named
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.attention_metadata import AttentionMetadata, SequenceSlice
from streamingvlm.model.cpu_kernels import onednn
from streamingvlm.model.cpu_kernels.linear_layers import (
    GatedMLP,
    OneDnnLinear,
    forget_copies,
    replace_linears_,
    supports_onednn,
)
from streamingvlm.model.loading import load_model
from streamingvlm.model.text_forward import forward_text

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
NUM_ROWS = (1, 15, 16, 31, 32, 33, 64, 200, 255, 256, 257, 300, 512, 513, 777)


class MLP(nn.Module):
    """The gated MLP of all families in transformers."""

    def __init__(self, size, inner_size, *, bias, activation="silu"):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(size, inner_size, bias=bias) for _ in range(2))
        self.down_proj = nn.Linear(inner_size, size, bias=bias)
        self.act_fn = ACT2FN[activation]

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", [(256, 768), (768, 256), (128, 128), (60, 100)])
def test_a_linear_layer_is_the_same_for_any_number_of_rows(sizes, bias):
    plain = nn.Linear(*sizes, bias=bias)
    wide = OneDnnLinear.of(plain)
    with torch.inference_mode():
        for num_rows in NUM_ROWS:
            x = torch.randn(num_rows, sizes[0])
            torch.testing.assert_close(wide(x), plain(x), atol=1e-5, rtol=1e-5)


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
def test_a_gated_mlp_is_the_same_for_any_number_of_rows(bias):
    whole = nn.ModuleDict({"mlp": MLP(128, 384, bias=bias)})
    rows = [torch.randn(num_rows, 128) for num_rows in NUM_ROWS]
    with torch.inference_mode():
        expected = [whole["mlp"](x) for x in rows]
        replace_linears_(whole)
        assert type(whole["mlp"]) is GatedMLP
        for x, right in zip(rows, expected, strict=True):
            torch.testing.assert_close(whole["mlp"](x), right, atol=1e-5, rtol=1e-5)


@needs_onednn
def test_a_reordered_copy_follows_its_weight():
    plain = nn.ModuleDict({"mlp": MLP(256, 768, bias=False)})
    wide = nn.ModuleDict({"mlp": GatedMLP(plain["mlp"])})
    replace_linears_(wide)
    rows = [torch.randn(num_rows, 256) for num_rows in (1, 2, 4, 9, 100)]

    def check():
        with torch.inference_mode():
            for x in rows:
                torch.testing.assert_close(wide["mlp"](x), plain["mlp"](x), atol=1e-5, rtol=1e-5)

    check()
    optimizer = torch.optim.SGD(plain.parameters(), lr=100.0)  # in place, as in training
    plain["mlp"](rows[-1]).square().mean().backward()
    optimizer.step()
    check()
    plain.load_state_dict({name: torch.randn_like(weight) / 16 for name, weight in plain.state_dict().items()})
    check()
    for layer in (wide["mlp"].up_proj, plain["mlp"].up_proj):  # another tensor
        layer.weight = nn.Parameter(torch.ones(768, 256) / 256)
    check()
    plain["mlp"].down_proj.weight.data += 1  # a change that torch does not count
    forget_copies()
    check()
    forget_copies()
    check()
    assert copy.deepcopy(wide).state_dict().keys() == plain.state_dict().keys()


def test_a_new_stream_uses_the_current_weights():
    frames = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)

    def replies(model):
        with StreamingSession(model) as session:
            return [session.step(frames).text for _ in range(3)]

    def change_(model):
        for layer in model.text_model.layers:  # as merging an adapter does
            layer.mlp.up_proj.weight.data *= -1

    wide = load_model("pitch", device="cpu")
    before = replies(wide)
    change_(wide)
    plain = load_model("pitch", device="cpu", cpu_kernels=False)
    change_(plain)
    assert before != replies(wide) == replies(plain)


@needs_onednn
@pytest.mark.parametrize("sizes", [(64, 128), (2048, 1024)])
def test_small_and_large_weights_are_not_copied(sizes):
    layer = OneDnnLinear.of(nn.Linear(*sizes))
    with torch.inference_mode():
        assert not layer.uses_copy
    assert not OneDnnLinear.of(nn.Linear(256, 768)).uses_copy  # outside of inference mode it may be trained
    with torch.inference_mode():
        assert not OneDnnLinear.of(nn.Linear(256, 768)).uses_copy  # torch counts no changes of inference tensors


@needs_onednn
def test_inputs_need_not_be_contiguous():
    plain = nn.Linear(256, 256)
    x = torch.randn(256, 300).T[:256]
    with torch.inference_mode():
        torch.testing.assert_close(OneDnnLinear.of(plain)(x), plain(x), atol=1e-5, rtol=1e-5)


@needs_onednn
def test_few_rows_more_axes_and_other_dtypes_use_torch(monkeypatch):
    wide = OneDnnLinear.of(nn.Linear(256, 256))
    monkeypatch.setattr(wide, "product", lambda *_, **__: pytest.fail("oneDNN was used"))
    with torch.inference_mode():
        assert wide(torch.randn(4, 256)).shape == (4, 256)
        assert wide(torch.randn(100, 8, 256)).shape == (100, 8, 256)
        with torch.autocast("cpu", torch.bfloat16):
            assert wide(torch.randn(200, 256).bfloat16()).dtype == torch.bfloat16
    wide(torch.randn(200, 256)).sum().backward()
    assert wide.weight.grad is not None


@needs_onednn
def test_many_rows_use_onednn(monkeypatch):
    plain = nn.Linear(256, 256)
    wide, calls = OneDnnLinear.of(plain), []
    product = wide.product
    monkeypatch.setattr(wide, "product", lambda x: calls.append(len(x)) or product(x))
    with torch.inference_mode():
        wide(torch.randn(600, 256))
    assert calls == [256, 256, 96]


def test_layers_share_weights_and_names_and_other_layers_stay():
    model = nn.ModuleDict({"mlp": MLP(8, 16, bias=True), "other": MLP(8, 16, bias=True, activation="gelu")})
    model["norm"] = nn.LayerNorm(8)
    weights, names = dict(model.named_parameters()), list(model.state_dict())
    replace_linears_(model)
    assert list(model.state_dict()) == names
    assert all(weight is weights[name] for name, weight in model.named_parameters())
    assert type(model["mlp"]) is GatedMLP and type(model["other"]) is MLP and type(model["norm"]) is nn.LayerNorm
    assert type(model["other"].up_proj) is OneDnnLinear
    assert isinstance(model["mlp"].up_proj, nn.Linear)  # adapters look for nn.Linear


@needs_onednn
def test_an_adapter_in_an_mlp_applies():
    model = nn.ModuleDict({"mlp": MLP(128, 384, bias=False)})
    replace_linears_(model)
    plain, x = model["mlp"].up_proj, torch.randn(200, 128)

    class Twice(nn.Module):
        def forward(self, x):
            return 2 * plain(x)

    with torch.inference_mode():
        before = model["mlp"](x)
        model["mlp"].up_proj = Twice()
        torch.testing.assert_close(model["mlp"](x), 2 * before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "kinds"), [("float32", {OneDnnLinear}), ("bfloat16", {nn.Linear})])
def test_a_float32_model_uses_them_on_a_cpu_with_avx512(monkeypatch, dtype, kinds):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    model = load_model("pitch", device="cpu", dtype=dtype).hf.model
    assert {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)} == kinds


def test_a_model_keeps_its_layers_on_other_cpus(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not supports_onednn(torch.device("cpu"), torch.float32)
    model = load_model("pitch", device="cpu").hf.model
    assert not any(isinstance(layer, OneDnnLinear | GatedMLP) for layer in model.modules())


@needs_onednn
def test_a_model_computes_the_same_with_them_and_without():
    wide = load_model("pitch", device="cpu")
    plain = load_model("pitch", device="cpu", cpu_kernels=False)
    replace_linears_(wide.hf.model)
    frames = torch.randint(0, 256, (8, 3, 112, 112), dtype=torch.uint8)
    with torch.inference_mode():
        seen, expected = (model.vision_encoder().features(frames).embeddings for model in (wide, plain))
        torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-4)
        for one, other in zip(wide.text_model.layers, plain.text_model.layers, strict=True):
            hidden = torch.randn(300, 256)
            torch.testing.assert_close(one.mlp(hidden), other.mlp(hidden), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(one.self_attn.q_proj(hidden), other.self_attn.q_proj(hidden), atol=1e-4, rtol=0)


@pytest.fixture
def avx512(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


def kinds_of(model):
    return {type(layer) for layer in model.hf.model.modules() if isinstance(layer, nn.Linear | GatedMLP)}


@torch.inference_mode()
def logits_of(model, num_tokens=300):
    """Prefill as a stream does: two-dimensional activations, which the kernels need."""
    pool = KVPool.of(model.text_model.config, num_tokens, torch.float32, torch.device("cpu"))
    part = SequenceSlice.of(pool.open(num_tokens), 0, num_tokens)
    metadata = AttentionMetadata(pool, [part], *model.rotation.of_text(torch.arange(float(num_tokens))))
    embeddings = model.text_model.embed_tokens(torch.arange(num_tokens))
    return model.logits(forward_text(model.text_model, embeddings, metadata))


@needs_onednn
def test_the_switch_turns_them_off_and_leaves_the_logits(avx512, monkeypatch):
    calls, linear = [], onednn.linear
    monkeypatch.setattr(onednn, "linear", lambda *args, **options: calls.append(1) or linear(*args, **options))
    with_kernels, without = (load_model("pitch", device="cpu", cpu_kernels=use) for use in (True, False))
    assert kinds_of(with_kernels) == {OneDnnLinear, GatedMLP}
    assert kinds_of(without) == {nn.Linear}
    calls.clear()
    expected = logits_of(without)
    assert not calls
    torch.testing.assert_close(logits_of(with_kernels), expected, atol=1e-4, rtol=1e-4)
    assert calls


class OtherSignature:
    """Operators as another version of torch might have them."""

    _reorder_linear_weight = _linear_pointwise = staticmethod(lambda: None)


@pytest.mark.parametrize("operators", [SimpleNamespace(), OtherSignature], ids=["missing", "other signature"])
def test_a_model_falls_back_to_torch_without_the_operators(avx512, monkeypatch, operators):
    expected = logits_of(load_model("pitch", device="cpu"))
    monkeypatch.setattr(torch.ops, "mkldnn", operators)
    assert not onednn.is_usable()
    fallback = load_model("pitch", device="cpu")
    assert kinds_of(fallback) == {nn.Linear}
    torch.testing.assert_close(logits_of(fallback), expected, atol=1e-4, rtol=1e-4)


def test_random_weights_follow_the_switch(avx512):
    device = torch.device("cpu")
    model = random_model(architecture_named("tiny"), device=device, dtype=torch.float32, cpu_kernels=False)
    assert kinds_of(model) == {nn.Linear}
