"""The two methods that restore whole images: what goes in, what is asked, and that they learn, in 2-D and 3-D."""

from collections.abc import Callable

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from imaging.config import ImageConfig
from ssl_methods import AnyMethodConfig, build_method
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Method, Views
from ssl_methods.reconstruction.autoencoder import Autoencoder
from ssl_methods.reconstruction.models_genesis import ModelsGenesis

FLAT = ImageConfig(modality="mri", size=32, channels=1)
DEEP = ImageConfig(modality="mri", size=32, depth=16, channels=1)
OVER = {
    "vit": (EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=1, width=48, heads=3), FLAT),
    "convnext": (EncoderConfig(name="convnext_atto"), FLAT),
    "monai_vit": (EncoderConfig(name="monai_vit", patch_size=(4, 8, 8), depth=1, width=48, heads=3), DEEP),
}


def made(name: str, over: str, **options: object) -> Autoencoder | ModelsGenesis:
    encoder, image = OVER[over]
    config = TypeAdapter(AnyMethodConfig).validate_python({"name": name, **options})
    method = build_method(config, encoder, image, 0)
    assert isinstance(method, Autoencoder | ModelsGenesis)
    return method


def waves(image: ImageConfig, count: int = 4) -> Batch:
    line = torch.linspace(0, 6, image.size)
    shift = torch.arange(count).view(-1, *[1] * (len(image.shape)))
    images = 0.5 + 0.25 * (line + shift).sin() + 0.25 * (line[:, None] * 2 - shift).cos()
    codes = torch.arange(count)
    return Batch(images.expand(count, *image.shape).contiguous(), codes, codes, codes)


def views_of(method: Method, seed: int = 0) -> Views:
    return method.make_views(waves(method.image), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("name", ["autoencoder", "models_genesis"])
def test_restored_images_come_near_the_original(name: str, over: str) -> None:
    method = made(name, over).train()
    views = views_of(method)
    optimiser = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad], 5e-3)
    losses = []
    for _ in range(25):
        loss, _ = method.loss(views)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    restored = method.restore(views)
    assert restored.shape == views["images"].shape and not restored.requires_grad
    assert (restored - views["images"]).square().mean().item() < 0.7 * losses[0]


@pytest.mark.parametrize(("name", "seen"), [("autoencoder", "images"), ("models_genesis", "corrupted")])
def test_loss_is_the_mean_square_between_what_is_decoded_and_the_original(name: str, seen: str) -> None:
    method = made(name, "vit")
    views = views_of(method)
    tokens = method.encoder.get_submodule("").forward_features(views[seen])
    decoder = method.get_submodule("decoder")
    prediction = decoder(tokens.transpose(1, 2).unflatten(2, (4, 4))).double()
    errors = [(one - truth).square().mean() for one, truth in zip(prediction, views["images"].double(), strict=True)]
    assert method.loss(views)[0].item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def encoder_sees(method: Method, views: Views) -> Tensor:
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0])

    handle = method.encoder.get_submodule("patch_embed").register_forward_pre_hook(catch)
    method.loss(views)
    handle.remove()
    return caught[0]


def test_the_encoder_sees_the_corrupted_image_and_never_the_original() -> None:
    method = made("models_genesis", "vit")
    views = views_of(method)
    assert torch.equal(encoder_sees(method, views), views["corrupted"])
    assert ((views["corrupted"] - views["images"]).abs() > 1e-3).flatten(1).any(dim=1).all()


def test_corrupted_values_stay_in_the_range_of_the_view() -> None:
    views = views_of(made("models_genesis", "vit"))
    for corrupted, image in zip(views["corrupted"], views["images"], strict=True):
        assert corrupted.min() >= image.min() - 1e-5 and corrupted.max() <= image.max() + 1e-5


@pytest.mark.parametrize("over", ["vit", "monai_vit"])
def test_without_corruptions_it_is_the_autoencoder(over: str) -> None:
    plain = dict.fromkeys(("bezier", "shuffle", "paint"), 0.0)
    genesis, baseline = made("models_genesis", over, **plain), made("autoencoder", over)
    views = views_of(genesis)
    torch.testing.assert_close(views["corrupted"], views["images"], rtol=0, atol=1e-5)
    assert genesis.loss(views)[0].item() == pytest.approx(baseline.loss(views)[0].item(), rel=1e-4)


def test_a_view_depends_on_its_own_image_only() -> None:
    method, batch = made("models_genesis", "vit"), waves(FLAT)
    changed = batch.images.clone()
    changed[0] = changed[0].flip(-1)
    other = Batch(changed, batch.patients, batch.studies, batch.series)
    one, two = (method.make_views(each, torch.Generator().manual_seed(0)) for each in (batch, other))
    assert not torch.equal(one["corrupted"][0], two["corrupted"][0])
    assert torch.equal(one["corrupted"][1:], two["corrupted"][1:])


def test_an_empty_image_is_corrupted_without_harm(build: Callable[..., Method]) -> None:
    method = build("models_genesis")
    codes = torch.arange(2)
    views = method.make_views(Batch(torch.zeros(2, 1, 32, 32), codes, codes, codes), torch.Generator().manual_seed(0))
    assert torch.isfinite(method.loss(views)[0])
