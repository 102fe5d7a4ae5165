"""Everything in `secateurs.models`, in small sizes where there are any; the family of the others is "large"."""

from __future__ import annotations

from secateurs import models
from zoo.subject import Subject, floats, subject, tokens

SMALL = floats(2, 3, 32, 32)

CLASSIC: list[Subject] = [
    subject("lenet_300_100", "classic", models.lenet_300_100, floats(2, 1, 28, 28)),
    subject("lenet_5", "classic", models.lenet_5, floats(2, 1, 28, 28)),
    subject("digits_cnn", "classic", models.digits_cnn, floats(2, 1, 8, 8)),
    subject("alexnet", "large", lambda: models.alexnet(classes=10), floats(1, 3, 224, 224)),
    subject("vgg_16", "large", lambda: models.vgg_16(classes=10), floats(1, 3, 224, 224)),
    subject("vgg_16_bn", "classic", lambda: models.vgg_16_bn(classes=10, width=0.125), SMALL),
    subject("squeezenet_1_0", "classic", lambda: models.squeezenet_1_0(classes=10), floats(1, 3, 64, 64)),
    subject("googlenet", "classic", lambda: models.googlenet(classes=10, width=0.25), SMALL),
    subject("resnet_18", "classic", lambda: models.resnet_18(classes=10, width=0.25), SMALL),
    subject("resnet_34", "classic", lambda: models.resnet_34(classes=10, width=0.25), SMALL),
    subject("resnet_50", "classic", lambda: models.resnet_50(classes=10, width=0.25), SMALL),
    subject("resnet_20", "classic", models.resnet_20, SMALL),
    subject("resnet_56", "classic", models.resnet_56, SMALL),
    subject("resnext_50", "classic", lambda: models.resnext_50(classes=10, width=0.25, groups=8), SMALL),
    subject("densenet_121", "classic", lambda: models.densenet_121(classes=10, growth=8), SMALL),
    subject("densenet_shallow", "classic", lambda: models.densenet_121(classes=10, growth=6, blocks=(2, 3, 2)), SMALL),
    subject("mobilenet_v2", "classic", lambda: models.mobilenet_v2(classes=10, width=0.35), SMALL),
    subject("mobilenet_v3_small", "classic", lambda: models.mobilenet_v3_small(classes=10, width=0.35), SMALL),
    subject("mobilenet_v3_large", "classic", lambda: models.mobilenet_v3_large(classes=10, width=0.35), SMALL),
    subject("shufflenet_v2", "classic", lambda: models.shufflenet_v2(10, 3, (12, 20, 36, 52, 60), (2, 3, 2)), SMALL),
    subject("efficientnet_b0", "classic", lambda: models.efficientnet_b0(classes=10, width=0.35, depth=0.5), SMALL),
    subject("vit_classic", "classic", lambda: models.vit(10, width=48, depth=2, heads=4, patch=8, image=32), SMALL),
    subject("swin_t", "classic", lambda: models.swin_t(10, width=24, blocks=(1, 2), heads=(2, 4), window=4), SMALL),
    subject("convnext_t", "classic", lambda: models.convnext_t(10, width=20, blocks=(1, 2, 1)), SMALL),
    subject("unet_classic", "classic", lambda: models.unet(classes=3, in_channels=1, width=10, depth=2), floats(2, 1, 16, 16)),
    subject("lstm_language_model", "classic", lambda: models.lstm_language_model(classes=97, width=36), tokens(2, 7)),
    subject(
        "lstm_language_model_tied", "classic", lambda: models.lstm_language_model(classes=97, width=28, tied=True), tokens(2, 7)
    ),
]
