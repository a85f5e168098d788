"""Data for training: found by name or path, checked, decoded once, cached, and handed over as uint8 tensors.

``load_dataset`` is the entry. Each kind of source has a file of its own (``parquet``, ``idx``, ``class_folders``,
``cifar_binary``, ``text``, ``digits``); ``find`` tells them apart, ``cache`` keeps what was decoded.
"""

from scrimp.train.data.dataset import Dataset as Dataset
from scrimp.train.data.dataset import Split as Split
from scrimp.train.data.dataset import describe as describe
from scrimp.train.data.find import KNOWN_NAMES as KNOWN_NAMES
from scrimp.train.data.load import load_dataset as load_dataset
from scrimp.train.data.source import Progress as Progress
