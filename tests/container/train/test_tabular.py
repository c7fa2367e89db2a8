"""CSV and Parquet files as tensors."""

import gzip
import sys

import pytest
import torch

from container.train.files import ChannelError
from container.train.tabular import Target, read_csv, read_parquet

IRIS = "sepal,petal,species\n5.1,1.4,setosa\n7.0,4.7,versicolor\n6.3,6.0,virginica\n4.9,1.5,setosa\n"


@pytest.fixture
def csv_file(tmp_path):
    def write(text, name="train.csv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_a_header_names_features_and_target(csv_file):
    table = read_csv(csv_file(IRIS), Target("species", classes=True))
    assert table.feature_names == ("sepal", "petal")
    assert table.class_names == ("setosa", "versicolor", "virginica")
    assert torch.equal(table.features, torch.tensor([[5.1, 1.4], [7.0, 4.7], [6.3, 6.0], [4.9, 1.5]]))
    assert torch.equal(table.target, torch.tensor([0, 1, 2, 0]))
    features, target = table.dataset()[2]
    assert torch.equal(features, torch.tensor([6.3, 6.0]))
    assert target == 2


def test_without_a_header_the_target_is_a_place(csv_file):
    path = csv_file("1.5,10,20\n-2e1,30,40\n")
    table = read_csv(path, Target(0))
    assert table.feature_names == ("1", "2")
    assert torch.equal(table.target, torch.tensor([1.5, -20.0]))
    assert torch.equal(read_csv(path, Target(-1)).target, torch.tensor([20.0, 40.0]))


def test_without_a_target_every_column_is_a_feature(csv_file):
    table = read_csv(csv_file("1,2\n3,4\n"))
    assert torch.equal(table.features, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert table.target is None
    assert torch.equal(table.dataset()[1][0], torch.tensor([3.0, 4.0]))


def test_a_header_can_be_said_where_it_cannot_be_seen(csv_file):
    path = csv_file("2019,2020\n1,2\n")
    assert len(read_csv(path).features) == 2
    assert read_csv(path, header=True).feature_names == ("2019", "2020")


def test_numeric_classes_are_ordered_by_number(csv_file):
    table = read_csv(csv_file("10,1\n9,2\n-1,3\n"), Target(0, classes=True))
    assert table.class_names == ("-1", "9", "10")
    assert torch.equal(table.target, torch.tensor([2, 1, 0]))


def test_validation_takes_the_training_tables_classes(csv_file):
    train = read_csv(csv_file(IRIS), Target("species", classes=True))
    path = csv_file("sepal,petal,species\n1,1,virginica\n", "validation.csv")
    validation = read_csv(path, Target("species", classes=True, class_names=train.class_names))
    assert torch.equal(validation.target, torch.tensor([2]))
    with pytest.raises(
        ChannelError, match=r"target column 'species' has \['virginica'\], which are no classes: \['a'\]"
    ):
        read_csv(path, Target("species", classes=True, class_names=("a",)))


def test_a_directory_is_all_its_data_files_in_the_order_of_names(tmp_path, csv_file):
    csv_file("3,4\n", "part-00001")
    csv_file("", "part-00002")  # an empty object
    csv_file("", "_SUCCESS")
    (tmp_path / "part-00000.csv.gz").write_bytes(gzip.compress(b"1,2\n"))
    assert torch.equal(read_csv(tmp_path).features, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


def test_what_excel_writes_is_read(tmp_path):
    (tmp_path / "a.csv").write_bytes('\ufeffage,"last, first"\r\n"1", 2\r\n\r\n3,4\r\n'.encode())
    table = read_csv(tmp_path / "a.csv")
    assert table.feature_names == ("age", "last, first")
    assert torch.equal(table.features, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


@pytest.mark.parametrize("marker", ["", "NA", "nan", "null", " ?"])
def test_missing_values_are_refused_or_replaced(csv_file, marker):
    path = csv_file(f"a,b\n1,2\n3,{marker}\n")
    with pytest.raises(
        ChannelError, match="1 values are missing, the first in column 'b' of data row 2: give `missing`"
    ):
        read_csv(path)
    assert torch.equal(read_csv(path, missing=-1.0).features, torch.tensor([[1.0, 2.0], [3.0, -1.0]]))


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("a,b\n1,2\n3,red\n", None, r"train.csv: row 2, column 'b' is 'red', which is not a number"),
        ("1,2\n3,red\n", None, r"row 2, column '1' is 'red'"),
        ("1,2\n3\n", None, "row 2 has 1 columns, the first line 2"),
        ("a,b\n", None, "holds no rows"),
        ("", None, "holds no rows"),
        ("a,b\n1,2\n", Target("c"), r"has no column 'c', but \['a', 'b'\]"),
        ("1,2\n", Target(2), "has no column 2"),
        ("1,2\n,3\n", Target(0), "target column 0 is missing in 1 rows"),
        ("1,2\nred,3\n", Target(0), "target column 0 is 'red', which is not a number"),
        ("x,2\n,3\n", Target(0, classes=True), r"target column 0 has \[''\], which are no classes"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_that_says_where(csv_file, text, target, message):
    with pytest.raises(ChannelError, match=message):
        read_csv(csv_file(text), target)


def test_files_whose_columns_differ_are_an_error(tmp_path, csv_file):
    csv_file("a,b\n1,2\n", "1.csv")
    csv_file("b,a\n1,2\n", "2.csv")
    with pytest.raises(ChannelError, match=r"2.csv has columns \['b', 'a'\], the files before it \['a', 'b'\]"):
        read_csv(tmp_path)


def test_c40_an_empty_channel_is_an_error(tmp_path):
    with pytest.raises(ChannelError, match="holds no rows"):
        read_csv(tmp_path)


def test_parquet_reads_as_csv_does(tmp_path):
    import pyarrow
    from pyarrow import parquet

    for number, rows in enumerate([[(5.1, 1, "setosa"), (7.0, None, "virginica")], [(6.3, 3, "setosa")]]):
        sepal, petal, species = zip(*rows, strict=True)
        columns = {"sepal": pyarrow.array(sepal, pyarrow.float64()), "petal": pyarrow.array(petal), "species": species}
        parquet.write_table(pyarrow.table(columns), tmp_path / f"part-{number}.parquet")
    table = read_parquet(tmp_path, Target("species", classes=True), missing=0.0)
    assert table.feature_names == ("sepal", "petal")
    assert table.class_names == ("setosa", "virginica")
    assert torch.equal(table.features, torch.tensor([[5.1, 1.0], [7.0, 0.0], [6.3, 3.0]]))
    assert torch.equal(table.target, torch.tensor([0, 1, 0]))
    with pytest.raises(ChannelError, match="1 values are missing, the first in column 'petal' of data row 2"):
        read_parquet(tmp_path, Target("species", classes=True))
    with pytest.raises(ChannelError, match="column 'species' is not numeric"):
        read_parquet(tmp_path, Target("sepal"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ChannelError, match="holds no rows"):
        read_parquet(tmp_path / "empty")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ChannelError, match=r"Parquet needs pyarrow: add it to requirements.txt"):
        read_parquet(tmp_path)
