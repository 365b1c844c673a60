from ._draw import per_class as per_class
from ._draw import random_labels as random_labels
from ._load import Dataset as Dataset
from ._load import Windows as Windows
from ._load import load as load
from ._load import load_text as load_text
from ._sources import Images as Images
from ._sources import Text as Text
