"""The networks of all families, and the baselines beside them."""

from jaxinterp.coda.hybrid import Hybrid
from jaxinterp.coda.network import CoDANet, l_coda, s_coda
from jaxinterp.coded.network import CodedResNeXt, Stage
from jaxinterp.gated.architecture import c4gap, fc, resnet, vconv, vgg16
from jaxinterp.gated.network import GatedNetwork, GatingNetwork, Network
from jaxinterp.glassbox.gcnn import GroupCNN
from jaxinterp.glassbox.network import GlassBox
from jaxinterp.nn.baselines import VGG, AlexNet, CifarResNet
from jaxinterp.taylor.distill.flow import Distiller
from jaxinterp.taylor.network import Level, PolynomialResNet, TaylorNet

__all__ = [
    "VGG",
    "AlexNet",
    "CifarResNet",
    "CoDANet",
    "CodedResNeXt",
    "Distiller",
    "GatedNetwork",
    "GatingNetwork",
    "GlassBox",
    "GroupCNN",
    "Hybrid",
    "Level",
    "Network",
    "PolynomialResNet",
    "Stage",
    "TaylorNet",
    "c4gap",
    "fc",
    "l_coda",
    "resnet",
    "s_coda",
    "vconv",
    "vgg16",
]
