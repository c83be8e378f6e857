"""The published data sets, each in its true layout, against torchvision's own readers and the published tables."""

from __future__ import annotations

import io
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest
import scipy.io
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pil
from scipy.sparse import csc_matrix
from torchvision.models import _meta

from lfd.data import DATASETS, cityscapes, layout, open_dataset, voc
from lfd.data.base import read_values
from lfd.data.query import parse_query, split_query
from lfd.data.sbd import read_mat
from lfd.data.voc import read_stored
from lfd.errors import DataError, LfdError, UsageError
from tests.conftest import make_folder

SIZE = (16, 16)
ALL = np.arange(256, dtype=np.uint8).reshape(SIZE)


def picture(path: Path, size_hw: tuple[int, int] = SIZE, *, grey: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full(size_hw if grey else (*size_hw, 3), 90, np.uint8))
    return path


def label(path: Path, values: np.ndarray[Any, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), values)
    return path


def full(value: int) -> np.ndarray[Any, Any]:
    return np.full(SIZE, value, np.uint8)


def only(values: Iterable[int]) -> np.ndarray[Any, Any]:
    """Return ALL with what is not among the values replaced by the first of them."""
    kept = list(values)
    return np.where(np.isin(ALL, kept), ALL, kept[0]).astype(np.uint8)


def names_of(text: str, split: str) -> list[str]:
    data = open_dataset(text, split)
    return [data[i].name for i in range(len(data))]


# --- Cityscapes -------------------------------------------------------------------------------------------------

CITYSCAPES_TABLE = (
    # The table of cityscapesScripts, helpers/labels.py: id, train id, name.
    (0, 255, "unlabeled"),
    (1, 255, "ego vehicle"),
    (2, 255, "rectification border"),
    (3, 255, "out of roi"),
    (4, 255, "static"),
    (5, 255, "dynamic"),
    (6, 255, "ground"),
    (7, 0, "road"),
    (8, 1, "sidewalk"),
    (9, 255, "parking"),
    (10, 255, "rail track"),
    (11, 2, "building"),
    (12, 3, "wall"),
    (13, 4, "fence"),
    (14, 255, "guard rail"),
    (15, 255, "bridge"),
    (16, 255, "tunnel"),
    (17, 5, "pole"),
    (18, 255, "polegroup"),
    (19, 6, "traffic light"),
    (20, 7, "traffic sign"),
    (21, 8, "vegetation"),
    (22, 9, "terrain"),
    (23, 10, "sky"),
    (24, 11, "person"),
    (25, 12, "rider"),
    (26, 13, "car"),
    (27, 14, "truck"),
    (28, 15, "bus"),
    (29, 255, "caravan"),
    (30, 255, "trailer"),
    (31, 16, "train"),
    (32, 17, "motorcycle"),
    (33, 18, "bicycle"),
    (-1, -1, "license plate"),
)


def make_cityscapes(root: Path, kind: str = "labelIds") -> Path:
    """Two cities to train on, one to score on, two labelled coarsely; with the files that stand beside the labels."""
    ids = only([*range(34), 255]) if kind == "labelIds" else only([*range(19), 255])
    for part, truth, frames in (
        ("train", "gtFine", ("bremen_000001_000019", "aachen_000002_000019", "aachen_000000_000019")),
        ("val", "gtFine", ("lindau_000000_000019",)),
        ("train_extra", "gtCoarse", ("augsburg_000000_000051", "wuerzburg_000000_000059")),
        ("train", "gtCoarse", ("aachen_000000_000019",)),
    ):
        for frame in frames:
            city = frame.partition("_")[0]
            picture(root / "leftImg8bit" / part / city / f"{frame}_leftImg8bit.png")
            label(root / truth / part / city / f"{frame}_{truth}_{kind}.png", ids)
            picture(root / truth / part / city / f"{frame}_{truth}_color.png")
            (root / truth / part / city / f"{frame}_{truth}_polygons.json").write_text("{}")
    (root / "leftImg8bit/train/aachen/._aachen_000000_000019_leftImg8bit.png").write_bytes(b"of a Mac's archive")
    (root / "license.txt").write_text("")
    return root


def test_cityscapes_ids_map_as_published(tmp_path: Path) -> None:
    sample = open_dataset(f"cityscapes:{make_cityscapes(tmp_path)}", "train")[0]
    stored = only([*range(34), 255])
    for label_id, train_id, name in CITYSCAPES_TABLE:
        where = stored == label_id % 256  # 8 bits store -1 as 255
        assert where.any()
        assert set(sample.mask[where].tolist()) == {train_id % 256}, name


def test_cityscapes_classes_are_those_of_torchvision() -> None:
    theirs = [c for c in torchvision.datasets.Cityscapes.classes if 0 <= c.train_id < 255]
    assert [(c.train_id, c.name, c.color) for c in theirs] == list(
        zip(range(19), cityscapes.LABELS.names, cityscapes.LABELS.colors, strict=True)
    )
    table = [(c.id, c.train_id, c.name) for c in torchvision.datasets.Cityscapes.classes]
    assert table == list(CITYSCAPES_TABLE)


@pytest.mark.parametrize("split", ["train", "val"])
def test_cityscapes_lists_what_torchvision_lists(tmp_path: Path, split: str) -> None:
    root = make_cityscapes(tmp_path)
    (root / "leftImg8bit/train/aachen/._aachen_000000_000019_leftImg8bit.png").unlink()  # torchvision takes it for one
    theirs = torchvision.datasets.Cityscapes(root, split=split, target_type="semantic")
    ours = open_dataset(f"cityscapes:{root}", split)
    assert sorted(ours.pairs) == sorted(
        (image, target[0]) for image, target in zip(theirs.images, theirs.targets, strict=True)
    )  # type: ignore[attr-defined]


def test_cityscapes_coarse_adds_to_train_what_has_no_fine_label(tmp_path: Path) -> None:
    root = make_cityscapes(tmp_path)
    fine = names_of(f"cityscapes:{root}", "train")
    assert fine == [
        f"{n}_leftImg8bit" for n in ("aachen_000000_000019", "aachen_000002_000019", "bremen_000001_000019")
    ]
    extra = torchvision.datasets.Cityscapes(root, split="train_extra", mode="coarse", target_type="semantic")
    both = names_of(f"cityscapes:{root}?coarse=true", "train")
    assert both == [*fine, *sorted(Path(image).stem for image in extra.images)] and len(extra) == 2
    assert names_of(f"cityscapes:{root}?coarse=true@val", "train") == ["lindau_000000_000019_leftImg8bit"]
    assert names_of(f"cityscapes:{root}?coarse=false", "train") == fine


def test_cityscapes_with_train_ids_only(tmp_path: Path) -> None:
    sample = open_dataset(f"cityscapes:{make_cityscapes(tmp_path, 'labelTrainIds')}", "val")[0]
    assert np.array_equal(sample.mask, only([*range(19), 255]))


# --- Pascal VOC and SBD -----------------------------------------------------------------------------------------

VOC_COLORS = {
    # The colour map of the VOC development kit, in RGB.
    "background": (0, 0, 0),
    "aeroplane": (128, 0, 0),
    "bicycle": (0, 128, 0),
    "bird": (128, 128, 0),
    "boat": (0, 0, 128),
    "bottle": (128, 0, 128),
    "bus": (0, 128, 128),
    "car": (128, 128, 128),
    "cat": (64, 0, 0),
    "chair": (192, 0, 0),
    "cow": (64, 128, 0),
    "diningtable": (192, 128, 0),
    "dog": (64, 0, 128),
    "horse": (192, 0, 128),
    "motorbike": (64, 128, 128),
    "person": (192, 128, 128),
    "pottedplant": (0, 64, 0),
    "sheep": (128, 64, 0),
    "sofa": (0, 192, 0),
    "train": (128, 192, 0),
    "tvmonitor": (0, 64, 128),
}
VOC_VALUES = [*range(21), 255]


def palette_png(values: np.ndarray[Any, Any], border: tuple[int, int, int] = (224, 224, 192)) -> bytes:
    """Return a PNG with a palette, as the VOC development kit writes them."""
    rows = [*VOC_COLORS.values(), *[(1, 2, 3)] * 234, border]
    image = Pil.frombytes("P", values.shape[::-1], values.tobytes())
    image.putpalette([c for row in rows for c in row])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def palette(path: Path, values: np.ndarray[Any, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(palette_png(values, **options))
    return path


def make_voc(above: Path) -> Path:
    """VOCdevkit/VOC2012 with 2 pictures to train on, 2 to score on, and one without a label."""
    root = above / "VOCdevkit" / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in (("train", ("2007_000032", "2007_000039")), ("val", ("2007_000033", "2008_000042"))):
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            picture(root / "JPEGImages" / f"{name}.jpg")
            palette(root / "SegmentationClass" / f"{name}.png", only(VOC_VALUES))
    picture(root / "JPEGImages" / "2012_004331.jpg")
    return root


def mat_bytes(values: Any, **options: Any) -> bytes:
    """Return a .mat with the struct of SBD's cls folder."""
    boundaries = np.empty((20, 1), object)
    for index in range(20):
        boundaries[index, 0] = csc_matrix(np.zeros(SIZE, np.uint8))
    record = {"Boundaries": boundaries, "Segmentation": values, "CategoriesPresent": np.array([[7]], np.uint8)}
    file = io.BytesIO()
    scipy.io.savemat(file, {"GTcls": record}, **options)
    return file.getvalue()


def make_sbd(above: Path) -> Path:
    """benchmark_RELEASE, whose splits overlap with VOC's, as they do."""
    root = above / "benchmark_RELEASE" / "dataset"
    (root / "cls").mkdir(parents=True)
    splits = {"train": ("2008_000042", "2009_000001", "2007_000032"), "val": ("2010_000003", "2007_000033")}
    for split, names in splits.items():
        (root / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            picture(root / "img" / f"{name}.jpg")
            (root / "cls" / f"{name}.mat").write_bytes(mat_bytes(only(range(21)), do_compression=True))
    return root.parent


def make_aug(root: Path) -> Path:
    """What people unpack into VOC2012: all labels as 8-bit values, VOC's own included, and the list with paths."""
    names = ("2007_000032", "2007_000039", "2009_000001", "2010_000003")
    for name in names:
        picture(root / "JPEGImages" / f"{name}.jpg")
        label(root / "SegmentationClassAug" / f"{name}.png", full(15))
    lines = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n" for name in names]
    (root / "ImageSets/Segmentation/train_aug.txt").write_text("".join(lines))
    return root


def test_voc_classes_and_colours_are_the_published_ones() -> None:
    assert dict(zip(voc.LABELS.names, voc.LABELS.colors, strict=True)) == VOC_COLORS
    assert voc.LABELS.names[1:] == tuple(_meta._VOC_CATEGORIES[1:])


@pytest.mark.parametrize("inner", ["VOCdevkit/VOC2012", "VOCdevkit", ""])
@pytest.mark.parametrize("split", ["train", "val"])
def test_voc_lists_and_reads_what_torchvision_does(tmp_path: Path, inner: str, split: str) -> None:
    make_voc(tmp_path)
    theirs = torchvision.datasets.VOCSegmentation(str(tmp_path), image_set=split)
    ours = open_dataset(f"voc:{tmp_path / inner}", split)
    assert ours.pairs == list(zip(theirs.images, theirs.masks, strict=True))  # type: ignore[attr-defined]
    for index, (_, mask) in enumerate(theirs):
        assert np.array_equal(ours[index].mask, np.asarray(mask))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_voc_palette_is_undone_exactly(data: st.DataObject) -> None:
    height, width = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    drawn = data.draw(st.lists(st.sampled_from(VOC_VALUES), min_size=height * width, max_size=height * width))
    values = np.array(drawn, np.uint8).reshape(height, width)
    with tempfile.TemporaryDirectory() as folder:
        assert np.array_equal(read_stored(palette(Path(folder) / "a.png", values)), values)
        assert np.array_equal(read_stored(label(Path(folder) / "b.png", values)), values)


def test_sbd_is_the_union_without_what_voc_scores_on(tmp_path: Path) -> None:
    root, more = make_voc(tmp_path / "voc"), make_sbd(tmp_path / "s b&d+")
    text = f"voc:{root}?sbd={str(more).replace('&', '%26')}"
    data = open_dataset(text, "train")
    assert [data[i].name for i in range(len(data))] == ["2007_000032", "2007_000039", "2009_000001", "2010_000003"]
    theirs = {
        name: np.asarray(mask)
        for split in ("train", "val")
        for dataset in [torchvision.datasets.SBDataset(more / "dataset", image_set=split, mode="segmentation")]
        for name, (_, mask) in zip([Path(path).stem for path in dataset.images], dataset, strict=True)
    }
    for index in (2, 3):
        assert np.array_equal(data[index].mask, theirs[data[index].name])
        assert str(more) in data.pairs[index][0]  # type: ignore[attr-defined]
    assert (data[0].mask == 255).any(), "VOC's own label, which has void borders, comes before SBD's"
    assert names_of(text, "val") == ["2007_000033", "2008_000042"]
    assert len(open_dataset(f"voc:{root}?sbd={quote(str(more / 'dataset'))}", "train")) == 4
    assert len(open_dataset(f"voc:{root}?sbd={quote(str(more.parent))}", "train")) == 4


@pytest.mark.parametrize("listing", ["train_aug.txt", "trainaug.txt"])
@pytest.mark.parametrize("as_palette", [False, True])
def test_sbd_as_people_convert_it(tmp_path: Path, listing: str, as_palette: bool) -> None:
    root = make_aug(make_voc(tmp_path))
    lists = root / "ImageSets/Segmentation"
    (lists / "train_aug.txt").rename(lists / listing)
    if as_palette:
        for path in (root / "SegmentationClassAug").iterdir():
            palette(path, full(15))
    data = open_dataset(f"voc:{root}?aug=true", "train")
    masks = {data[i].name: data[i].mask for i in range(len(data))}
    assert list(masks) == ["2007_000032", "2007_000039", "2009_000001", "2010_000003"]
    assert np.array_equal(masks["2007_000032"], only(VOC_VALUES)) and np.array_equal(masks["2010_000003"], full(15))
    assert names_of(f"voc:{root}?aug=true", "val") == ["2007_000033", "2008_000042"]
    assert len(open_dataset(f"voc:{root}?aug=false", "train")) == 2


@pytest.mark.parametrize("options", [{"do_compression": True}, {"do_compression": False}])
def test_a_mat_is_read_as_it_was_written(tmp_path: Path, options: dict[str, bool]) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(mat_bytes(ALL, **options))
    assert np.array_equal(read_mat(path), ALL)


def test_a_double_matrix_that_matlab_stores_as_bytes_is_read_as_scipy_reads_it(tmp_path: Path) -> None:
    as_uint8, as_double = (struct.pack("<IIII", 6, 8, matrix_class, 0) for matrix_class in (9, 6))
    content = mat_bytes(ALL)
    assert as_uint8 in content
    path = tmp_path / "a.mat"
    path.write_bytes(content.replace(as_uint8, as_double))
    theirs = scipy.io.loadmat(path)["GTcls"]["Segmentation"][0, 0]
    assert theirs.dtype == np.uint8 and np.array_equal(read_mat(path), theirs)


def _mat(record: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, record)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a label of SBD"),
        (b"not a matrix at all" * 20, "not a label of SBD"),
        (mat_bytes(ALL)[:300], "not a label of SBD"),
        (mat_bytes(ALL, do_compression=True)[:-40], "not a label of SBD"),
        (_mat({"GTinst": {"Segmentation": ALL}}), "its variable is not GTcls"),
        (_mat({"GTcls": {"Boundaries": ALL}}), "GTcls has no field Segmentation"),
        (_mat({"GTcls": ALL}), "GTcls is no 1x1 struct"),
        (_mat({"GTcls": {"Segmentation": {"a": 1}}}), "Segmentation is not stored as a matrix of uint8"),
        (_mat({"GTcls": {"Segmentation": "text"}}), "Segmentation is not stored as a matrix of uint8"),
        (mat_bytes(ALL.astype(np.float64)), "Segmentation is not stored as a matrix of uint8"),
        (mat_bytes(np.zeros((4, 4, 3), np.uint8)), r"dimensions \[4, 4, 3\] and 48 bytes"),
        (mat_bytes(np.zeros((0, 4), np.uint8)), r"GTcls.Segmentation"),
        (mat_bytes(np.zeros((4096, 4096), np.uint8), do_compression=True), "more than 8388608 bytes unpacked"),
        (mat_bytes(np.zeros((2048, 1024), np.uint8)), "at most 1048576 bytes"),
    ],
)
def test_a_broken_mat_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "2009_000001.mat"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read_mat(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_a_spoilt_mat_is_read_or_refused(changes: list[tuple[int, int]], compressed: bool) -> None:
    content = bytearray(mat_bytes(ALL, do_compression=compressed))
    for place, value in changes:
        content[place % len(content)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mat"
        path.write_bytes(content)
        try:
            stored = read_mat(path)
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert stored.ndim == 2 and stored.dtype == np.uint8


# --- ADE20K -----------------------------------------------------------------------------------------------------


def make_ade20k(above: Path) -> Path:
    root = above / "ADEChallengeData2016"
    for part, names in (("training", ("ADE_train_00000002", "ADE_train_00000001")), ("validation", ("ADE_val_1",))):
        for name in names:
            picture(root / "images" / part / f"{name}.jpg")
            label(root / "annotations" / part / f"{name}.png", only(range(151)))
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n")
    (root / "sceneCategories.txt").write_text("")
    return root


@pytest.mark.parametrize("inner", ["ADEChallengeData2016", ""])
def test_ade20k_layout_and_values(tmp_path: Path, inner: str) -> None:
    make_ade20k(tmp_path)
    data = open_dataset(f"ade20k:{tmp_path / inner}", "train")
    assert [data[0].name, data[1].name] == ["ADE_train_00000001", "ADE_train_00000002"]
    assert len(open_dataset(f"ade20k:{tmp_path / inner}@val", "train")) == 1
    stored = only(range(151))
    for value in range(151):
        assert set(data[0].mask[stored == value].tolist()) == {255 if value == 0 else value - 1}


ADE20K_ROWS = [
    # Rows of objectInfo150.txt, with the colour of the same row of the makers' palette.
    (1, "wall", (120, 120, 120)),
    (2, "building", (180, 120, 120)),
    (3, "sky", (6, 230, 230)),
    (7, "road", (140, 140, 140)),
    (13, "person", (150, 5, 61)),
    (21, "car", (0, 102, 200)),
    (33, "fence", (255, 184, 6)),
    (49, "skyscraper", (140, 140, 140)),
    (66, "toilet", (0, 255, 133)),
    (75, "computer", (0, 255, 173)),
    (81, "bus", (255, 0, 245)),
    (90, "television", (0, 255, 194)),
    (103, "van", (163, 255, 0)),
    (117, "minibike", (163, 0, 255)),
    (128, "bicycle", (255, 245, 0)),
    (137, "traffic light", (41, 0, 255)),
    (149, "clock", (102, 255, 0)),
    (150, "flag", (92, 0, 255)),
]


@pytest.mark.parametrize(("row", "name", "color"), ADE20K_ROWS)
def test_ade20k_classes_are_the_published_ones(tmp_path: Path, row: int, name: str, color: tuple[int, ...]) -> None:
    make_ade20k(tmp_path)
    labels = open_dataset(f"ade20k:{tmp_path}", "val").labels
    assert len(labels) == 150 and labels.names[row - 1] == name and labels.colors[row - 1] == color


# --- COCO-Stuff -------------------------------------------------------------------------------------------------

COCO_UNUSED = {i - 1 for i, name in enumerate(_meta._COCO_CATEGORIES) if name == "N/A"} | {90}
"""What torchvision knows to be absent among the things, and "hair brush", 91, which lies behind its list."""

COCO_VALUES = [value for value in range(182) if value not in COCO_UNUSED]


def make_coco_stuff(root: Path, images: str = "images/", maps: str = "stuffthingmaps") -> Path:
    for split, names in (("train", ("000000000030", "000000000009")), ("val", ("000000000139",))):
        for name in names:
            picture(root / f"{images}{split}2017" / f"{name}.jpg", grey=name == "000000000009")
            label(root / maps / f"{split}2017" / f"{name}.png", only([*COCO_VALUES, 255]))
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / "instances_train2017.json").write_text("{}")
    return root


@pytest.mark.parametrize("images", ["images/", ""])
@pytest.mark.parametrize("maps", ["stuffthingmaps", "annotations", "stuffthingmaps_trainval2017"])
def test_coco_stuff_layouts(tmp_path: Path, images: str, maps: str) -> None:
    data = open_dataset(f"coco_stuff:{make_coco_stuff(tmp_path, images, maps)}", "train")
    assert [data[0].name, data[1].name] == ["000000000009", "000000000030"]
    assert data[0].image.shape == (*SIZE, 3)
    assert len(open_dataset(f"coco_stuff:{tmp_path}", "val")) == 1


def test_coco_stuff_values_and_classes(tmp_path: Path) -> None:
    data = open_dataset(f"coco_stuff:{make_coco_stuff(tmp_path)}", "train")
    stored, labels, mask = only([*COCO_VALUES, 255]), data.labels, data[0].mask
    assert len(labels) == 171 == len(COCO_VALUES) and len(set(labels.colors)) == 171
    for value, name in enumerate(_meta._COCO_CATEGORIES[1:]):
        if name != "N/A":
            (got,) = set(mask[stored == value].tolist())
            assert labels.names[got] == name
    # labels.txt of COCO-Stuff, whose index is the stored value and one.
    for index, name in ((92, "banner"), (112, "door-stuff"), (149, "road"), (157, "sky-other"), (182, "wood")):
        (got,) = set(mask[stored == index - 1].tolist())
        assert labels.names[got] == name
    assert set(mask[stored == 255].tolist()) == {255}


def test_coco_stuff_as_converted_to_train_ids(tmp_path: Path) -> None:
    root = make_coco_stuff(tmp_path, maps="annotations")
    published = list((root / "annotations" / "train2017").iterdir())
    for path in published:
        label(path.with_name(f"{path.stem}_labelTrainIds.png"), full(170))
    before = open_dataset(f"coco_stuff:{root}", "train")[0].mask
    assert len(np.unique(before)) == 172, "the published maps come first"
    for path in published:
        path.unlink()
    assert np.array_equal(open_dataset(f"coco_stuff:{root}", "train")[0].mask, full(170))


@pytest.mark.parametrize("name", ["voc", "ade20k", "coco_stuff"])
def test_pictures_are_read_as_stored_as_torchvision_reads_them(tmp_path: Path, name: str) -> None:
    root = MAKERS[name](tmp_path)
    pairs = open_dataset(f"{name}:{root}", "train").pairs  # type: ignore[attr-defined]
    turned = Pil.Exif()
    turned[0x0112] = 6  # show it turned by 90 degrees
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:8] = (200, 40, 90)
    Pil.fromarray(pixels).save(pairs[0][0], exif=turned, quality=100, subsampling=0)
    image = open_dataset(f"{name}:{root}", "train")[0].image
    theirs = np.asarray(Pil.open(pairs[0][0]).convert("RGB")).astype(int)  # what torchvision.datasets do
    assert np.abs(image[..., ::-1] - theirs).max() <= 2 and np.abs(theirs - pixels).max() <= 4


def test_no_file_is_looked_at_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_coco_stuff(tmp_path)
    for index in range(200):
        (root / "images/train2017" / f"1{index:011}.jpg").touch()
        (root / "stuffthingmaps/train2017" / f"1{index:011}.png").touch()
    looked: list[str] = []
    stat = Path.stat

    def counted(path: Path, **options: Any) -> Any:
        looked.append(str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", counted)
    assert len(open_dataset(f"coco_stuff:{root}", "train")) == 202
    assert not [path for path in looked if path.endswith((".jpg", ".png"))]


# --- what is wrong is named -------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[[Path], Path]] = {
    "cityscapes": make_cityscapes,
    "voc": make_voc,
    "ade20k": make_ade20k,
    "coco_stuff": make_coco_stuff,
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_test_split_is_withheld(tmp_path: Path, name: str) -> None:
    root = MAKERS[name](tmp_path)
    with pytest.raises(DataError, match=r"withheld.*@val"):
        open_dataset(f"{name}:{root}@test", "train")


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("place", ["", "/nowhere/at/all", "~no_such_user_here/x", "\0"])
def test_no_place_is_a_data_error(name: str, place: str) -> None:
    with pytest.raises(DataError, match=r"names no place|no such folder"):
        open_dataset(f"{name}:{place}", "train")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("cityscapes", ".."),
        ("cityscapes", "leftImg8bit"),
        ("cityscapes", "leftImg8bit/train"),
        ("cityscapes", "leftImg8bit/train/aachen"),
        ("voc", "JPEGImages"),
        ("voc", "ImageSets/Segmentation"),
        ("voc", "../../.."),
        ("ade20k", "images/training"),
        ("coco_stuff", "images"),
        ("coco_stuff", "stuffthingmaps/train2017"),
        ("coco_stuff", ".."),
    ],
)
def test_the_wrong_level_says_which_was_meant(tmp_path: Path, name: str, given: str) -> None:
    root = MAKERS[name](tmp_path / "above" / "data")
    place = (root / given).resolve()
    with pytest.raises(DataError, match="did you mean") as caught:
        open_dataset(f"{name}:{place}", "train")
    suggested = str(caught.value).rpartition("did you mean ")[2].removesuffix("?")
    assert len(open_dataset(f"{name}:{suggested}", "train")) >= 2
    assert str(place) in str(caught.value) and "\n" not in str(caught.value)


def drop(*paths: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        for path in paths:
            if (root / path).is_dir():
                shutil.rmtree(root / path)
            else:
                (root / path).unlink()

    return spoil


def write(path: str, values: np.ndarray[Any, Any]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        label(root / path, values)

    return spoil


def text(path: str, content: bytes) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        (root / path).write_bytes(content)

    return spoil


def rgb(*colors: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    pixels = np.zeros((*SIZE, 3), np.uint8)
    for index, color in enumerate(colors):
        pixels[0, index] = color[::-1]
    return pixels


BREMEN = "gtFine/train/bremen/bremen_000001_000019_gtFine_labelIds.png"
VOC_MASK = "SegmentationClass/2007_000032.png"
VOC_TRAIN = "ImageSets/Segmentation/train.txt"
ADE_MASK = "annotations/training/ADE_train_00000001.png"
COCO_MASK = "stuffthingmaps/train2017/000000000009.png"


@pytest.mark.parametrize(
    ("name", "options", "spoil", "says"),
    [
        (
            "cityscapes",
            "",
            drop("gtFine"),
            ["no gtFine/train/ here", "leftImg8bit/train/ and", "it holds", "gtCoarse/"],
        ),
        ("cityscapes", "", drop("leftImg8bit/train/aachen", "leftImg8bit/train/bremen"), ["a folder a city"]),
        ("cityscapes", "", drop("gtFine/train/aachen"), ["gtFine/train/aachen", "no such label file (2 of 3"]),
        ("cityscapes", "", drop(BREMEN), [BREMEN, "no such label file (1 of 3 pictures have none)"]),
        (
            "cityscapes",
            "",
            write(BREMEN, full(34)),
            [BREMEN, "label value 34", "7, 8, 11 to 13, 17, 19 to 28, 31 to 33"],
        ),
        ("cityscapes", "", write(BREMEN, rgb()), [BREMEN, "3 channels", "not colours"]),
        ("cityscapes", "?coarse=true", drop("leftImg8bit/train_extra"), ["no leftImg8bit/train_extra/ here"]),
        ("cityscapes", "?coarse=true", drop("gtCoarse/train_extra"), ["no gtCoarse/train_extra/ here"]),
        ("voc", "", drop("SegmentationClass"), ["no SegmentationClass/ here", "it holds ImageSets/, JPEGImages/"]),
        ("voc", "", drop(VOC_TRAIN), [VOC_TRAIN, "cannot be read"]),
        ("voc", "", text(VOC_TRAIN, b"\xff\xfe\n"), [VOC_TRAIN, "not UTF-8"]),
        ("voc", "", text(VOC_TRAIN, b""), ["has no pictures"]),
        ("voc", "", text(VOC_TRAIN, b"2007_000032\n2007_000032\n"), [VOC_TRAIN, "'2007_000032' stands in it 2 times"]),
        ("voc", "", text(VOC_TRAIN, b"../../etc/passwd\n"), ["JPEGImages/passwd.jpg", "no such picture (1 of 1"]),
        ("voc", "", drop(VOC_MASK), [VOC_MASK, "no such label file (1 of 2"]),
        ("voc", "", drop("JPEGImages/2007_000039.jpg"), ["JPEGImages/2007_000039.jpg", "no such picture (1 of 2"]),
        ("voc", "", write(VOC_MASK, rgb((128, 0, 1))), [VOC_MASK, "colour (128, 0, 1) not in the published map"]),
        ("voc", "", write(VOC_MASK, rgb((9, 9, 9), (7, 8, 9))), ["colour (7, 8, 9) and 1 more"]),
        ("voc", "", write(VOC_MASK, full(21)), [VOC_MASK, "label value 21", "0 to 20, or 255 for void"]),
        ("voc", "", write(VOC_MASK, np.zeros((*SIZE, 4), np.uint8)), [VOC_MASK, "4 channels"]),
        ("voc", "", write(VOC_MASK, np.zeros((4, 4), np.uint8)), [VOC_MASK, "4x4 pixels", "16x16"]),
        ("voc", "?aug=true", drop(), ["no SegmentationClassAug/ here"]),
        (
            "voc",
            "?aug=true",
            lambda root: (root / "SegmentationClassAug").mkdir(),
            ["no train_aug.txt or trainaug.txt"],
        ),
        ("ade20k", "", drop("annotations/training"), ["no annotations/training/ here", "images/training/ and"]),
        ("ade20k", "", drop(ADE_MASK), [ADE_MASK, "no such label file (1 of 2"]),
        ("ade20k", "", write(ADE_MASK, full(255)), [ADE_MASK, "label value 255", "1 to 150, or 0 for void"]),
        (
            "ade20k",
            "",
            drop("images/training/ADE_train_00000001.jpg", "images/training/ADE_train_00000002.jpg"),
            ["images/training: no pictures *.jpg"],
        ),
        ("coco_stuff", "", drop("stuffthingmaps"), ["no stuffthingmaps/train2017/ or annotations/train2017/ or"]),
        ("coco_stuff", "", drop(COCO_MASK), [COCO_MASK, "no such label file (1 of 2"]),
        (
            "coco_stuff",
            "",
            write(COCO_MASK, full(11)),
            [COCO_MASK, "label value 11", "0 to 10, 12 to 24", "255 for void"],
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_path(
    tmp_path: Path, name: str, options: str, spoil: Callable[[Path], None], says: list[str]
) -> None:
    root = MAKERS[name](tmp_path)
    spoil(root)
    with pytest.raises(DataError) as caught:
        data = open_dataset(f"{name}:{root}{options}", "train")
        for index in range(len(data)):
            data[index]
    message = str(caught.value)
    assert all(part in message for part in says), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (drop("dataset/cls"), ["benchmark_RELEASE/dataset: no cls/ here", "img/ and cls/"]),
        (drop("dataset/val.txt"), ["dataset/val.txt", "cannot be read"]),
        (drop("dataset/cls/2009_000001.mat"), ["cls/2009_000001.mat", "no such label file (1 of 4"]),
        (drop("dataset/img/2010_000003.jpg"), ["img/2010_000003.jpg", "no such picture (1 of 4"]),
        (text("dataset/cls/2009_000001.mat", b"MATLAB 5.0 MAT-file"), ["cls/2009_000001.mat", "not a label of SBD"]),
        (text("dataset/cls/2009_000001.mat", mat_bytes(full(21))), ["cls/2009_000001.mat", "label value 21"]),
    ],
)
def test_what_is_wrong_with_sbd_is_named(tmp_path: Path, spoil: Callable[[Path], None], says: list[str]) -> None:
    root, more = make_voc(tmp_path / "voc"), make_sbd(tmp_path)
    spoil(more)
    with pytest.raises(DataError) as caught:
        data = open_dataset(f"voc:{root}?sbd={more}", "train")
        for index in range(len(data)):
            data[index]
    message = str(caught.value)
    assert all(part in message for part in says), message
    assert "\n" not in message


def test_a_list_that_trains_on_what_is_scored_is_refused(tmp_path: Path) -> None:
    root = make_aug(make_voc(tmp_path))
    listing = root / "ImageSets/Segmentation/train_aug.txt"
    listing.write_text(f"{listing.read_text()}2008_000042\n")
    with pytest.raises(DataError, match=r"train_aug.txt: has 1 pictures of val.txt, such as 2008_000042"):
        open_dataset(f"voc:{root}?aug=true", "train")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("cityscapes:{}?corse=true", "unknown cityscapes option 'corse'. Did you mean 'coarse'"),
        ("cityscapes:{}?coarse=yes", "coarse='yes'; expected true or false"),
        ("cityscapes:{}?coarse", "expected KEY=VALUE"),
        ("voc:{}?agu=true", "unknown voc option 'agu'. Did you mean 'aug'"),
        ("voc:{}?aug=", "aug=''; expected true or false"),
        ("voc:{}?aug=true&sbd=/x", "expected one"),
        ("voc:{}?aug=true&aug=true", "given twice"),
    ],
)
def test_a_wrong_option_is_a_usage_error(tmp_path: Path, data: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        open_dataset(data.format(tmp_path), "train")


def test_a_list_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_voc(tmp_path)
    monkeypatch.setattr(layout, "MAX_LIST_BYTES", 8)
    with pytest.raises(DataError, match=r"train.txt: larger than 8 bytes"):
        open_dataset(f"voc:{root}", "train")


@given(st.dictionaries(st.sampled_from("abcdef"), st.text(st.characters(exclude_categories=["Cs"]))))
def test_options_come_back_as_they_were_quoted(options: dict[str, str]) -> None:
    query = "&".join(f"{key}={quote(value)}" for key, value in options.items())
    assert parse_query("x", query, "abcdef", "?a=1") == options
    assert split_query(f"/some/where?{query}") == ("/some/where", query)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_in_one_line(query: str) -> None:
    try:
        parse_query("x", query, ("size", "seed"), "?seed=7")
    except LfdError as error:
        assert "\n" not in str(error) and len(str(error)) < 300


def test_a_long_list_with_one_name_twice_is_refused_at_once(tmp_path: Path) -> None:
    listing = tmp_path / "train.txt"
    listing.write_text("".join(f"{number}\n" for number in (*range(100_000), 99_999)))
    with pytest.raises(DataError, match="'99999' stands in it 2 times"):
        layout.read_names(listing)


def test_a_folders_list_is_bounded_and_may_begin_with_a_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path, {"train": 2})
    for kind in ("images", "masks"):
        (root / kind / "train" / "001.png").rename(root / kind / "a picture.png")
    (root / "val.txt").write_text("a picture.png\n", encoding="utf-8-sig")
    assert names_of(f"folder:{root}", "val") == ["a picture"]
    monkeypatch.setattr(layout, "MAX_LIST_BYTES", 8)
    with pytest.raises(DataError, match=r"val.txt: larger than 8 bytes"):
        open_dataset(f"folder:{root}", "val")


def test_a_class_with_a_value_of_its_own_is_refused(tmp_path: Path) -> None:
    """A label value there would have no effect: the position is it."""
    root = make_folder(tmp_path, {"train": 1})
    text = (root / "labels.toml").read_text()
    (root / "labels.toml").write_text(text.replace('name = "sky"', 'name = "sky"\nvalue = 7'))
    with pytest.raises(DataError, match=r"labels.toml: .*unknown key 'value'\. .*Known: color, name"):
        open_dataset(f"folder:{root}", "train")


def grey_png(bits: int, values: list[int]) -> bytes:
    """Return a grey PNG of one row, of any depth (PNG specification, 11.2)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = "".join(f"{value:0{bits}b}" for value in values)
    packed = bytes(int(row[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(row), 8))
    head = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("read", [read_values, read_stored])
def test_a_grey_label_of_less_than_8_bits_is_refused(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(grey_png(8, [0, 1, 1, 0]))
    assert read(path).tolist() == [[0, 1, 1, 0]]
    for bits, stretched in ((1, 255), (2, 85), (4, 17)):
        path.write_bytes(grey_png(bits, [0, 1, 1, 0]))
        assert np.asarray(Pil.open(path).convert("L")).max() == stretched, "what decoders make of a 1"
        with pytest.raises(DataError, match=rf"a.png: a grey PNG of {bits} bits a pixel.*expected 8 bits"):
            read(path)
    few = Pil.frombytes("P", (2, 1), bytes([0, 1]))
    few.putpalette([*VOC_COLORS["background"], *VOC_COLORS["aeroplane"]])
    few.save(path, bits=1)
    assert read_stored(path).tolist() == [[0, 1]], "a palette is no grey"


@pytest.mark.parametrize("given", ["..", "train"])
def test_camvids_wrong_level_says_which_was_meant(tmp_path: Path, given: str) -> None:
    root = tmp_path / "above" / "camvid"
    picture(root / "train/0001TP.jpg")
    label(root / "trainannot/0001TP.png", full(3))
    (root / "train/._0001TP.jpg").write_bytes(b"of a Mac's archive")
    assert names_of(f"camvid:{root}", "train") == ["0001TP"]
    with pytest.raises(DataError, match=f"did you mean {root}"):
        open_dataset(f"camvid:{(root / given).resolve()}", "train")


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("cityscapes", BREMEN),
        ("voc", VOC_MASK),
        ("voc", "JPEGImages/2007_000039.jpg"),
        ("ade20k", ADE_MASK),
        ("coco_stuff", COCO_MASK),
    ],
)
def test_an_incomplete_set_can_still_be_looked_through(tmp_path: Path, name: str, lost: str) -> None:
    root = MAKERS[name](tmp_path)
    count = len(open_dataset(f"{name}:{root}", "train"))
    drop(lost)(root)
    with pytest.raises(layout.IncompleteError) as caught:
        open_dataset(f"{name}:{root}", "train")
    data = caught.value.dataset
    index = next(index for index, pair in enumerate(data.pairs) if str(root / lost) in pair)
    with pytest.raises(DataError, match=f"{lost}: no such"):
        data[index]
    assert len(data) == count and all(data[other].name for other in range(count) if other != index)


def test_two_pictures_of_one_label_are_refused_in_camvid(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg"):
        picture(tmp_path / f"train/0001TP{suffix}")
    label(tmp_path / "trainannot/0001TP.png", full(3))
    with pytest.raises(DataError, match=r"train: 0001TP.jpg and 0001TP.png have the same label file"):
        open_dataset(f"camvid:{tmp_path}", "train")


def test_every_published_set_is_in_the_list() -> None:
    assert set(MAKERS) < set(DATASETS)
