"""The table of pretext tasks that stand by themselves.

Adding one: its file, its name in ``SINGLE_METHODS`` and in ``SingleMethodConfig``, one test.
"""

from ssl_methods.autoencoder import Autoencoder, AutoencoderConfig
from ssl_methods.barlow_twins import BarlowTwins, BarlowTwinsConfig
from ssl_methods.byol import BYOL, BYOLConfig
from ssl_methods.dino import DINO, DINOConfig
from ssl_methods.ibot import IBOT, IBOTConfig
from ssl_methods.ijepa import IJEPA, IJEPAConfig
from ssl_methods.jigsaw import Jigsaw, JigsawConfig
from ssl_methods.mae import MAE, MAEConfig
from ssl_methods.method import Method
from ssl_methods.moco import MoCoConfig, MoCoV2
from ssl_methods.moco_v3 import MoCoV3, MoCoV3Config
from ssl_methods.models_genesis import ModelsGenesis, ModelsGenesisConfig
from ssl_methods.relative_patch import RelativePatch, RelativePatchConfig
from ssl_methods.rotation import Rotation, RotationConfig
from ssl_methods.simclr import SimCLR, SimCLRConfig
from ssl_methods.simmim import SimMIM, SimMIMConfig
from ssl_methods.simsiam import SimSiam, SimSiamConfig
from ssl_methods.slice_order import SliceOrder, SliceOrderConfig
from ssl_methods.swav import SwAV, SwAVConfig
from ssl_methods.swin_unetr import SwinUNETR, SwinUNETRConfig
from ssl_methods.vicreg import VICReg, VICRegConfig

SINGLE_METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "mae": MAE,
    "ijepa": IJEPA,
    "autoencoder": Autoencoder,
    "simmim": SimMIM,
    "models_genesis": ModelsGenesis,
    "moco_v2": MoCoV2,
    "moco_v3": MoCoV3,
    "byol": BYOL,
    "simsiam": SimSiam,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    "swav": SwAV,
    "dino": DINO,
    "ibot": IBOT,
    "rotation": Rotation,
    "jigsaw": Jigsaw,
    "relative_patch": RelativePatch,
    "slice_order": SliceOrder,
    "swin_unetr": SwinUNETR,
}
SingleMethodConfig = (
    MoCoConfig
    | MoCoV3Config
    | BYOLConfig
    | SimSiamConfig
    | BarlowTwinsConfig
    | VICRegConfig
    | SwAVConfig
    | DINOConfig
    | IBOTConfig
    | SimCLRConfig
    | MAEConfig
    | IJEPAConfig
    | AutoencoderConfig
    | SimMIMConfig
    | ModelsGenesisConfig
    | RotationConfig
    | JigsawConfig
    | RelativePatchConfig
    | SliceOrderConfig
    | SwinUNETRConfig
)
"""Their sections, told apart by ``name``."""
