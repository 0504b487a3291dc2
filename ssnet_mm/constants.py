"""What models, weights and deployment share. The configs state the numbers too, as literals."""

# VGG16, configuration D of https://arxiv.org/abs/1409.1556: of each stage the number of 3x3
# convolutions, and their width in units of the first stage's.
VGG16_STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))

# Epsilon inside batch norm's square root: Keras' default, so the original's.
BN_EPS = 1e-3
TORCH_EPS = 1e-5  # torch's default, and mmcv's

# Mean and standard deviation of ImageNet's RGB values in 0..255, torchvision's times 255:
# https://docs.pytorch.org/vision/stable/models.html.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

# Mean of the BGR values in 0..255 that Caffe's FCN subtracts:
# https://github.com/shelhamer/fcn.berkeleyvision.org/blob/master/voc-fcn8s/train.prototxt.
CAFFE_MEAN_BGR = (104.00699, 116.66877, 122.67892)

# Files of weights that are written, and run without a config where they name one of ours.
WEIGHTS_SUFFIXES = ('.pth', '.safetensors')

# That a runtime may be given: beyond some number OpenMP ends the process.
MAX_THREADS = 1024
