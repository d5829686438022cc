"""The table of pretext tasks: what is known of each without importing it (torch alone costs a second).

Adding one: its file, its entry here, one test, and what CONTRIBUTING.md names beside.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["vit", "convolutional", "swin"]
Family = Literal["contrastive", "non-contrastive", "predictive", "reconstruction", "hybrid"]
Role = Literal["shared", "local", "derived"]
EVERY_KIND: tuple[Kind, ...] = ("vit", "convolutional", "swin")


@dataclass(frozen=True)
class MethodFacts:
    """What a method is; its class has every one of these as an attribute of the same name."""

    path: str
    """Module and class, as ``ssl_methods.reconstruction.mae.MAE``: imported by ``method_type`` at first use."""
    summary: str
    paper: str
    family: Family
    per_sample: bool
    """True when, by the defaults, one image's gradient depends on no other image: neither of the batch nor of
    what the method remembers of earlier ones."""
    parts: Mapping[str, Role]
    """The role of every top-level part of its state (``Method``)."""
    encoders: tuple[Kind, ...] = EVERY_KIND
    dimensions: tuple[int, ...] = (2,)
    """2 for images, 3 for volumes."""
    fewest_patients: int = 1
    """Patients a site needs for the loss to mean something."""
    private_parts: frozenset[str] = frozenset()
    """Local parts that no study may share: they hold something of single images or patients."""
    has_attention_teacher: bool = False
    """Whether masks can look at a teacher's attention (``MethodConfig.focus``)."""
    learning_rate: float = 4e-3
    """Where the study names none, of AdamW for 256 images a step. 4e-3 is 5e-4 for a hospital's step of 32, as in the
    sweep; papers state less, for steps of thousands of images."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Where the study names none, AdamW's: MAE's, unless the paper trains with Adam's own .999."""


METHODS: dict[str, MethodFacts] = {
    "simclr": MethodFacts(
        path="ssl_methods.contrastive.simclr.SimCLR",
        summary="tells views of one image from those of other patients",
        paper="Chen et al. 2020",
        family="contrastive",
        per_sample=False,
        dimensions=(2, 3),
        # The loss reaches the encoder only through the projector: were it personal, every site would pull the
        # common encoder towards its own space. FedAvg over SimCLR averages the whole online network for that
        # reason.
        parts={"encoder": "shared", "projector": "shared"},
        fewest_patients=2,
    ),
    "mae": MethodFacts(
        path="ssl_methods.reconstruction.mae.MAE",
        summary="restores the pixels of hidden patches",
        paper="He et al. 2022; federated: Yan et al. 2023",
        family="reconstruction",
        per_sample=True,
        encoders=("vit",),
        dimensions=(2, 3),
        parts={"encoder": "shared", "decoder": "shared"},  # averaged with the encoder, as Yan et al. do
    ),
    "ijepa": MethodFacts(
        path="ssl_methods.predictive.ijepa.IJEPA",
        summary="predicts the features of hidden blocks",
        paper="Assran et al. 2023",
        family="predictive",
        per_sample=True,
        encoders=("vit",),
        # The predictor is averaged with the encoder, as Yan et al. (2023) do with the decoder. The target encoder
        # follows the site's own encoder over the rounds, so that it costs no bytes.
        parts={"encoder": "shared", "predictor": "shared", "target_encoder": "local"},
        has_attention_teacher=True,
        betas=(0.9, 0.999),
    ),
    "autoencoder": MethodFacts(
        path="ssl_methods.reconstruction.autoencoder.Autoencoder",
        summary="restores the whole image from its feature map",
        paper="Masci et al. 2011",
        family="reconstruction",
        per_sample=True,
        dimensions=(2, 3),
        parts={"encoder": "shared", "decoder": "shared"},
        learning_rate=1e-3,
    ),
    "simmim": MethodFacts(
        path="ssl_methods.reconstruction.simmim.SimMIM",
        summary="predicts the pixels of hidden blocks with a linear head",
        paper="Xie et al. 2022",
        family="reconstruction",
        per_sample=True,
        encoders=("vit", "swin"),
        parts={"encoder": "shared", "mask_token": "shared", "head": "shared"},
        betas=(0.9, 0.999),
    ),
    "spark": MethodFacts(
        path="ssl_methods.reconstruction.spark.SparK",
        summary="restores the pixels of hidden patches from a convolutional encoder's visible places",
        paper="Tian et al. 2023",
        family="reconstruction",
        per_sample=True,
        encoders=("convolutional",),
        parts={"encoder": "shared", "decoder": "shared"},
    ),
    "models_genesis": MethodFacts(
        path="ssl_methods.reconstruction.models_genesis.ModelsGenesis",
        summary="restores images from changed intensities, shuffled pixels and painted parts",
        paper="Zhou et al. 2021",
        family="reconstruction",
        per_sample=True,
        dimensions=(2, 3),
        parts={"encoder": "shared", "decoder": "shared"},
        learning_rate=1e-3,
    ),
    "moco_v2": MethodFacts(
        path="ssl_methods.contrastive.moco.MoCoV2",
        summary="finds an image's key in a queue of other patients' keys",
        paper="He et al. 2020; Chen, Fan et al. 2020",
        family="contrastive",
        # Over a ViT a batch's own gradients are independent, but the queue carries each image into later steps.
        per_sample=False,
        dimensions=(2, 3),
        # The projector is averaged with the encoder, as in SimCLR. What makes the keys follows the site's own
        # encoder over the rounds: it costs no bytes, and keys of one queue come from one slowly moving network.
        parts={
            "encoder": "shared",
            "projector": "shared",
            "key_encoder": "local",
            "key_projector": "local",
            "queue": "local",
        },
        fewest_patients=2,
        private_parts=frozenset({"queue"}),
    ),
    "moco_v3": MethodFacts(
        path="ssl_methods.contrastive.moco_v3.MoCoV3",
        summary="finds an image's key among those of the batch's other patients",
        paper="Chen, Xie and He 2021",
        family="contrastive",
        per_sample=False,
        # The whole online network is averaged (FedU: Zhuang et al. 2021, who also keep what follows it at the site).
        parts={
            "encoder": "shared",
            "projector": "shared",
            "predictor": "shared",
            "key_encoder": "local",
            "key_projector": "local",
        },
        fewest_patients=2,
        betas=(0.9, 0.999),
    ),
    "byol": MethodFacts(
        path="ssl_methods.non_contrastive.byol.BYOL",
        summary="predicts how a slowly following network sees another view",
        paper="Grill et al. 2020",
        family="non-contrastive",
        per_sample=False,  # because of the heads' BatchNorm
        dimensions=(2, 3),
        # The online network is averaged whole and the target stays: so FedU (Zhuang et al. 2021, ICCV), which found
        # the online encoder the better one to send and the target best kept.
        parts={
            "encoder": "shared",
            "projector": "shared",
            "predictor": "shared",
            "target_encoder": "local",
            "target_projector": "local",
        },
    ),
    "simsiam": MethodFacts(
        path="ssl_methods.non_contrastive.simsiam.SimSiam",
        summary="predicts one view's projection from the other's",
        paper="Chen and He 2021",
        family="non-contrastive",
        per_sample=False,  # because of the heads' BatchNorm
        dimensions=(2, 3),
        # The whole network is averaged, as FedU and FedEMA do with SimSiam (Zhuang et al. 2022, ICLR).
        parts={"encoder": "shared", "projector": "shared", "predictor": "shared"},
    ),
    "barlow_twins": MethodFacts(
        path="ssl_methods.non_contrastive.barlow_twins.BarlowTwins",
        summary="makes the channels of two views agree and differ from each other",
        paper="Zbontar et al. 2021",
        family="non-contrastive",
        per_sample=False,
        dimensions=(2, 3),
        # As in SimCLR: the loss reaches the encoder only through the projector.
        parts={"encoder": "shared", "projector": "shared"},
    ),
    "vicreg": MethodFacts(
        path="ssl_methods.non_contrastive.vicreg.VICReg",
        summary="draws views together, keeps channels varying and uncorrelated",
        paper="Bardes et al. 2022",
        family="non-contrastive",
        per_sample=False,
        dimensions=(2, 3),
        # As in SimCLR: the loss reaches the encoder only through the projector.
        parts={"encoder": "shared", "projector": "shared"},
    ),
    "lejepa": MethodFacts(
        path="ssl_methods.non_contrastive.lejepa.LeJEPA",
        summary="draws views together and the embeddings of all images to a normal distribution",
        paper="Balestriero and LeCun 2025",
        family="non-contrastive",
        per_sample=False,  # the distribution is the batch's
        # As in SimCLR: the loss reaches the encoder only through the projector.
        parts={"encoder": "shared", "projector": "shared"},
        betas=(0.9, 0.999),
    ),
    "swav": MethodFacts(
        path="ssl_methods.non_contrastive.swav.SwAV",
        summary="predicts a view's cluster from other views",
        paper="Caron et al. 2020",
        family="non-contrastive",
        per_sample=False,
        # The clusters are what the sites have in common: with prototypes of their own they would number them
        # differently.
        parts={"encoder": "shared", "projector": "shared", "prototypes": "shared", "queue": "local"},
        private_parts=frozenset({"queue"}),
    ),
    "dino": MethodFacts(
        path="ssl_methods.non_contrastive.dino.DINO",
        summary="predicts a slow teacher's view of large crops from small ones",
        paper="Caron et al. 2021",
        family="non-contrastive",
        # Without BatchNorm a batch's own gradients are independent, but the centre carries each image into later
        # steps.
        per_sample=False,
        parts={"encoder": "shared", "head": "shared", "prototypes": "shared", "teacher": "local", "centre": "local"},
        betas=(0.9, 0.999),
    ),
    "ibot": MethodFacts(
        path="ssl_methods.hybrid.ibot.IBOT",
        summary="DINO, and what a slow teacher sees at hidden patches",
        paper="Zhou et al. 2022",
        family="hybrid",
        per_sample=False,
        encoders=("vit",),
        parts={
            "encoder": "shared",
            "head": "shared",
            "prototypes": "shared",
            "teacher": "local",
            "centre": "local",
            "mask_token": "shared",
            "patch_centre": "local",
        },
        has_attention_teacher=True,
        betas=(0.9, 0.999),
    ),
    "rotation": MethodFacts(
        path="ssl_methods.predictive.rotation.Rotation",
        summary="guesses by how many right angles an image was turned",
        paper="Gidaris et al. 2018",
        family="predictive",
        per_sample=True,
        dimensions=(2, 3),
        parts={"encoder": "shared", "head": "shared"},
        learning_rate=5e-4,
    ),
    "jigsaw": MethodFacts(
        path="ssl_methods.predictive.jigsaw.Jigsaw",
        summary="guesses how the nine tiles of an image were shuffled",
        paper="Noroozi and Favaro 2016",
        family="predictive",
        per_sample=True,
        parts={"encoder": "shared", "head": "shared"},
        learning_rate=5e-4,
    ),
    "relative_patch": MethodFacts(
        path="ssl_methods.predictive.relative_patch.RelativePatch",
        summary="guesses on which side of one patch another one lies",
        paper="Doersch et al. 2015",
        family="predictive",
        per_sample=True,
        parts={"encoder": "shared", "head": "shared"},
        learning_rate=5e-4,
    ),
    "slice_order": MethodFacts(
        path="ssl_methods.predictive.slice_order.SliceOrder",
        summary="guesses which of two images of a patient comes first, by slice position or date",
        paper="Zhang et al. 2017; in time: Rivail et al. 2019",
        family="predictive",
        per_sample=True,
        dimensions=(2, 3),
        parts={"encoder": "shared", "head": "shared"},
    ),
    "swin_unetr": MethodFacts(
        path="ssl_methods.hybrid.swin_unetr.SwinUNETR",
        summary="tells turns, finds the other copy and restores cut-out boxes of volumes",
        paper="Tang et al. 2022",
        family="hybrid",
        per_sample=False,
        encoders=("swin", "vit"),
        dimensions=(3,),
        parts={"encoder": "shared", "rotation_head": "shared", "contrast_head": "shared", "decoder": "shared"},
        fewest_patients=2,
        learning_rate=3.2e-3,  # the paper's 4e-4 for a step of 32
        betas=(0.9, 0.999),
    ),
    "combine": MethodFacts(
        path="ssl_methods.hybrid.combine.Combine",
        summary="weighted sum of other methods over one encoder",
        paper="combined strategies: Huang et al. 2023",
        family="hybrid",
        per_sample=False,  # by the default sum, as encoders and parts are; of any other its members say (declared_for)
        encoders=("vit",),
        dimensions=(2, 3),
        parts={"encoder": "shared", "mae.decoder": "shared", "simclr.projector": "shared"},
        fewest_patients=2,
    ),
}
