"""Data modules, selectable by class name on the command line."""

from datamodules.birds import Birds
from datamodules.cars import Cars
from datamodules.cifar import CIFAR10, CIFAR100
from datamodules.dogs import Dogs
from datamodules.image_files_module import ImageFilesModule
from datamodules.image_folder import ImageFolder
from datamodules.imagenet import ImageNet
from datamodules.textures import Textures

__all__ = ["CIFAR10", "CIFAR100", "Birds", "Cars", "Dogs", "ImageFilesModule", "ImageFolder", "ImageNet", "Textures"]
