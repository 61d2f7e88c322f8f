"""Tables of published measurements: Parquet or CSV files, and those that the optional package `measured` brings.

The package is `aiconfigurator-core`; its tables lie under `systems/data/SYSTEM/FAMILY/FRAMEWORK/VERSION/NAME.parquet`.
"""

import csv
import gzip
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray
from omegaconf import OmegaConf
from pyarrow.lib import ArrowException


class MissingDataError(FileNotFoundError):
    """The measurements asked for are not on this machine; the message says how to get them."""


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of equal length.

    Attributes:
        source: where it is from, for messages and reports.
        columns: arrays [rows] by name; numbers as float64, all else as strings.
    """

    source: str
    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self.columns:
            raise ValueError(f"{self.source} has no column {name}; it has {', '.join(self.columns)}")
        return self.columns[name]

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def where(self, rows: NDArray[np.bool_]) -> "Table":
        """The rows that are marked."""
        return Table(self.source, {name: values[rows] for name, values in self.columns.items()})


def read_table(path: str | Path) -> Table:
    """Read a table of measurements (.parquet, .csv or .csv.gz).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"table {path} does not exist: give table=FILE (.parquet, .csv or .csv.gz)")
    try:
        if path.suffix == ".parquet":
            content = pyarrow.parquet.read_table(path).to_pydict()
        elif path.name.endswith((".csv", ".csv.gz")):
            content = _read_csv(path)
        else:
            raise ValueError("expected a name that ends in .parquet, .csv or .csv.gz")
    except (ArrowException, UnicodeDecodeError, EOFError, csv.Error, OSError) as error:
        raise ValueError(f"{path} is no readable table: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not content or not len(next(iter(content.values()))):
        raise ValueError(f"{path} holds no rows")
    return Table(path.name, {str(name): _column(values) for name, values in content.items()})


def packaged(path: str) -> Table:
    """A table of the optional package, by its path below `systems/data`.

    Raises:
        MissingDataError: the package is not installed, or has no such table.
    """
    file = _package_folder() / "data" / path
    if not file.is_file():
        raise MissingDataError(f"the installed aiconfigurator-core has no table {path}: install version 0.12.0")
    table = read_table(file)
    return Table(path.removesuffix(".parquet"), table.columns)


def data_sheet(system: str) -> dict[str, float]:
    """Figures of a GPU's data sheet, as the optional package gives them: mem_bw, bfloat16_tc_flops, fp8_tc_flops, ...

    Raises:
        MissingDataError: the package is not installed, or does not know the system.
    """
    file = _package_folder() / f"{system}.yaml"
    if not file.is_file():
        raise MissingDataError(f"the installed aiconfigurator-core has no system {system}: install version 0.12.0")
    content: Any = OmegaConf.load(file)
    return {str(k): float(v) for k, v in content["gpu"].items()}


def has_package() -> bool:
    """Whether the optional package is installed."""
    return importlib.util.find_spec("aiconfigurator_core") is not None


def published_folder() -> Path:
    """Folder of smaller published tables, beside a checkout of this repository.

    Raises:
        MissingDataError: there is none.
    """
    folder = Path(__file__).parents[3] / "shared" / "measured"
    if not folder.is_dir():
        raise MissingDataError("no published tables beside this checkout (../shared/measured)")
    return folder


def _package_folder() -> Path:
    spec = importlib.util.find_spec("aiconfigurator_core")
    if spec is None or spec.origin is None:
        raise MissingDataError("measured tables need the optional package: pip install 'grace-opt[measured]'")
    return Path(spec.origin).parent / "systems"


def _read_csv(path: Path) -> dict[str, list[str]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows:
        return {}
    short = next((number for number, row in enumerate(rows, 1) if len(row) != len(rows[0])), None)
    if short is not None:
        raise ValueError(f"line {short} has {len(rows[short - 1])} fields, the first line {len(rows[0])}")
    return dict(zip(rows[0], map(list, zip(*rows[1:], strict=True)), strict=False))


def _column(values: list[Any]) -> NDArray[Any]:
    """Numbers (an empty field is NaN) or strings."""
    try:
        return np.array([np.nan if value in ("", None) else value for value in values], np.float64)
    except ValueError:
        return np.array(["" if value is None else str(value) for value in values])
