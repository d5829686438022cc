"""One hospital: local pretraining (plain PyTorch), the site's state on its disk, and a thin Flower app."""
