"""The product over patches is the convolution that it stands for."""

import pytest
import torch
from torch import nn

from streamingvlm.model.loading import load_model
from streamingvlm.model.patch_product import PatchProduct


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernel", [(2, 14, 14), (2, 16, 16), (1, 3, 5)])
def test_a_product_over_patches_is_the_convolution(kernel, bias):
    torch.manual_seed(0)
    convolution = nn.Conv3d(3, 24, kernel, stride=kernel, bias=bias)
    patches = torch.randn(7, 3, *kernel)
    product = PatchProduct.of(convolution)(patches)
    torch.testing.assert_close(product, convolution(patches).flatten(1), atol=1e-5, rtol=1e-5)


def test_it_shares_the_weights_and_their_names():
    convolution = nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4), bias=False)
    product = PatchProduct.of(convolution)
    assert product.weight is convolution.weight
    assert product.state_dict().keys() == convolution.state_dict().keys()
    product(torch.randn(5, 3, 2, 4, 4)).sum().backward()
    assert convolution.weight.grad is not None


@pytest.mark.parametrize(("dtype", "is_product"), [("float32", False), ("bfloat16", True)])
def test_a_model_in_half_precision_takes_it_and_one_in_float32_sums_as_the_released_code_does(dtype, is_product):
    tower = load_model("pitch", device="cpu", dtype=dtype).hf.model.visual
    assert isinstance(tower.patch_embed.proj, PatchProduct) == is_product
