"""Our own measurements, written by ``python -m benchmarks.advisor_table`` from benchmarks/results."""

from simulation.advisor.cell import Cell

CELLS = (
    Cell("simclr", "lgg_mri_128", "mri", 2, "resnet10t", "logistic", 0.082, 0.050, 0.113, 30),
    Cell("byol", "lgg_mri_128", "mri", 2, "resnet10t", "logistic", 0.063, 0.035, 0.090, 30),
    Cell("simsiam", "lgg_mri_128", "mri", 2, "resnet10t", "logistic", 0.075, 0.042, 0.108, 30),
    Cell("moco_v2", "lgg_mri_128", "mri", 2, "resnet10t", "logistic", 0.078, 0.048, 0.107, 30),
    Cell("barlow_twins", "lgg_mri_128", "mri", 2, "resnet10t", "logistic", 0.070, 0.041, 0.098, 30),
    Cell("vicreg", "lgg_mri_128", "mri", 2, "resnet10t", "logistic", 0.084, 0.051, 0.116, 30),
    Cell("rotation", "lgg_mri_128", "mri", 2, "resnet10t", "logistic", 0.025, -0.013, 0.063, 30),
    Cell("swav", "lgg_mri_128", "mri", 2, "resnet10t", "logistic", 0.075, 0.041, 0.109, 30),
    Cell("jigsaw", "lgg_mri_128", "mri", 2, "resnet10t", "logistic", 0.016, -0.018, 0.051, 30),
    Cell("relative_patch", "lgg_mri_128", "mri", 2, "resnet10t", "logistic", 0.020, -0.012, 0.052, 30),
    Cell("slice_order", "lgg_mri_128", "mri", 2, "resnet10t", "logistic", 0.057, 0.028, 0.087, 30),
    Cell("autoencoder", "lgg_mri_128", "mri", 2, "resnet10t", "finetune", -0.026, -0.043, -0.008, 30),
    Cell("models_genesis", "lgg_mri_128", "mri", 2, "resnet10t", "finetune", -0.042, -0.062, -0.021, 30),
    Cell("mae", "lgg_mri_128", "mri", 2, "vit_tiny_patch16_224", "finetune", 0.144, 0.097, 0.190, 30),
    Cell("ijepa", "lgg_mri_128", "mri", 2, "vit_tiny_patch16_224", "finetune", -0.034, -0.053, -0.016, 30),
    Cell("simmim", "lgg_mri_128", "mri", 2, "vit_tiny_patch16_224", "finetune", 0.053, 0.027, 0.078, 30),
    Cell("moco_v3", "lgg_mri_128", "mri", 2, "vit_tiny_patch16_224", "logistic", 0.079, 0.044, 0.114, 30),
    Cell("dino", "lgg_mri_128", "mri", 2, "vit_tiny_patch16_224", "logistic", 0.065, 0.033, 0.096, 30),
    Cell("vicreg", "busi_224", "ultrasound", 2, "resnet10t", "logistic", 0.013, -0.034, 0.061, 245),
    Cell("mae", "adrenalmnist3d", "ct", 3, "monai_vit", "logistic", 0.062, 0.014, 0.109, 317),
    Cell("simclr", "adrenalmnist3d", "ct", 3, "monai_vit", "logistic", 0.038, -0.022, 0.097, 317),
    Cell("models_genesis", "adrenalmnist3d", "ct", 3, "monai_vit", "logistic", 0.038, -0.014, 0.089, 317),
    Cell("swin_unetr", "adrenalmnist3d", "ct", 3, "monai_vit", "logistic", 0.072, 0.010, 0.134, 317),
)
NATURAL_WEIGHTS_GAIN = (0.184, 0.099, 0.270)
"""AUROC that continuing from ImageNet weights added to SimCLR on the same EfficientNet, and its interval."""
