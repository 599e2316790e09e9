"""The layers over patches are the convolution that they stand for."""

import pytest
import torch
from torch import nn

from streamingvlm.model.loading import load_model
from streamingvlm.model.patch_layers import PatchProduct, PatchRow


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernel", [(2, 14, 14), (2, 16, 16), (1, 3, 5)])
def test_a_layer_over_patches_is_the_convolution(kernel, bias):
    torch.manual_seed(0)
    convolution = nn.Conv3d(3, 24, kernel, stride=kernel, bias=bias)
    patches = torch.randn(7, 3, *kernel)
    expected = convolution(patches).flatten(1)
    torch.testing.assert_close(PatchProduct.of(convolution)(patches), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(PatchRow.of(convolution)(patches), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("layer", [PatchProduct, PatchRow])
def test_it_shares_the_weights_and_their_names(layer):
    convolution = nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4), bias=False)
    product = layer.of(convolution)
    assert product.weight is convolution.weight
    assert product.state_dict().keys() == convolution.state_dict().keys()
    product(torch.randn(5, 3, 2, 4, 4)).sum().backward()
    assert convolution.weight.grad is not None


@pytest.mark.parametrize(("dtype", "layer"), [("float32", PatchRow), ("bfloat16", PatchProduct)])
def test_a_model_in_half_precision_takes_the_product_and_one_in_float32_sums_as_the_released_code_does(dtype, layer):
    tower = load_model("pitch", device="cpu", dtype=dtype).hf.model.visual
    assert isinstance(tower.patch_embed.proj, layer)
