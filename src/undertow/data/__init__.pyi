from ._draw import per_class as per_class
from ._load import Dataset as Dataset
from ._load import Windows as Windows
from ._load import load as load
from ._load import load_text as load_text
from ._sources import Images as Images
from ._sources import Text as Text
from ._tables import load_table as load_table
