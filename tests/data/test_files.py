"""Data sets in files of every kind, the same rows in each; splits by name; what cannot be read is named."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import datasets
import pytest
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from export.runtime.errors import MvlmError
from export.runtime.image import open_picture
from mvlm_core.data.files import data_files
from mvlm_core.data.reading import read_rows, rows_sha256, stream_rows
from mvlm_core.data.row import PicturePlace
from tests.support.tiny import drawn_picture

# A conversation about two pictures, a question about one, and one about none.
MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
    {"role": "user", "content": [{"type": "text", "text": "<image>?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "words"}]},
]
CONTENT = [(PicturePlace(0), "and", PicturePlace(1)), ("<image>?",)]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    drawn_picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def rows_of(*pictures):
    """The rows of a data set whose pictures 0 and 1 are held in some way."""
    return [
        {"id": "two", "images": [pictures[0], pictures[1]], "messages": MESSAGES, "split": "val"},
        {"id": "one", "images": [pictures[0]], "messages": [MESSAGES[0] | {"content": MESSAGES[0]["content"][:2]},
                                                            MESSAGES[1]], "split": "val"},
        {"id": "none", "images": [], "messages": MESSAGES[2:], "split": "train"},
    ]  # fmt: skip


def as_jsonl(folder: Path) -> Path:
    for i in range(2):
        (folder / f"{i}.png").write_bytes(png(i))
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n\n" for row in rows_of("0.png", "1.png")))
    return file


def as_data_urls(folder: Path) -> Path:
    import base64

    urls = [f"data:image/png;base64,{base64.b64encode(png(i)).decode()}" for i in range(2)]
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of(*urls)))
    return file


def as_json(folder: Path) -> Path:
    file = as_jsonl(folder).with_name("a.json")
    file.write_text(json.dumps(rows_of("0.png", "1.png")))
    return file


def as_parquet(folder: Path) -> Path:
    table = datasets.Dataset.from_list(rows_of(*({"bytes": png(i), "path": f"{i}.png"} for i in range(2))))
    table = table.cast_column("images", datasets.List(datasets.Image()))
    table.to_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def as_plain_parquet(folder: Path) -> Path:
    """As other tools write it: bytes, and nothing that says that they are pictures."""
    datasets.Dataset.from_list(rows_of(png(0), png(1))).to_parquet(folder / "a.parquet")
    return folder


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, held in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(held)
            tar.addfile(member, io.BytesIO(held))
    return file


def as_tar(folder: Path) -> Path:
    members = {}
    for row in rows_of(0, 1):
        name = row.pop("id")
        for place, seed in enumerate(row.pop("images")):
            members[f"some/{name}.{place}.png"] = png(seed)
        members[f"some/{name}.json"] = json.dumps(row | {"id": name}).encode()
    return write_tar(folder / "a.tar", members)


KINDS = [as_jsonl, as_data_urls, as_json, as_parquet, as_plain_parquet, as_tar]


@pytest.mark.parametrize("read", [read_rows, lambda path: list(stream_rows(path))], ids=["whole", "streamed"])
@pytest.mark.parametrize("write", KINDS)
def test_the_same_rows_in_every_kind_of_file(tmp_path, write, read):
    rows = read(write(tmp_path))
    assert [(row.id, row.split, len(row.pictures)) for row in rows] == [
        ("two", "val", 2), ("one", "val", 1), ("none", "train", 0)
    ]  # fmt: skip
    assert [turn.content for turn in rows[0].turns] == CONTENT
    assert rows[0].turns[1].answers == ("words",)
    assert rows[0].pictures[0] == rows[1].pictures[0] != rows[0].pictures[1]
    for source, seed in [(rows[0].pictures[0], 0), (rows[0].pictures[1], 1), (rows[1].pictures[0], 0)]:
        assert open_picture(pickle.loads(pickle.dumps(source)).read()).tobytes() == drawn_picture(seed).tobytes()


@pytest.mark.parametrize("write", [as_data_urls, as_parquet, as_plain_parquet, as_tar])
def test_pictures_inside_the_files_are_not_kept(tmp_path, write):
    for row in read_rows(write(tmp_path)):
        for picture in row.pictures:
            assert not any(isinstance(held, bytes) for held in vars(picture).values())


def question(i: int | str, **more):
    return {"id": str(i), "image": None, "question": "?", "answers": ["!"]} | more


def test_splits_by_the_names_of_files_and_folders(tmp_path):
    names = ["train.jsonl", "validation-00000-of-1.jsonl", "deep/test/a.jsonl", "train/eval.jsonl", "b.jsonl"]
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(question(i)) + "\n" + json.dumps(question(i + 10, split="train")))
    found = {row.id: row.split for row in read_rows(tmp_path)}
    assert [found[str(i)] for i in range(5)] == ["train", "val", "test", "test", "train"]
    assert {found[str(i + 10)] for i in range(5)} == {"train"}


def test_rows_of_tables_and_tars_may_go_without_an_id(tmp_path):
    (tmp_path / "t").mkdir()
    for split in ("train", "test"):
        row = {key: value for key, value in question(0).items() if key != "id"}
        datasets.Dataset.from_list([row, row]).to_parquet(tmp_path / "t" / f"{split}.parquet")
    assert [row.id for row in read_rows(tmp_path / "t")] == ["test-0", "test-1", "train-0", "train-1"]
    file = write_tar(tmp_path / "a.tar", {"x.json": json.dumps(row).encode()})
    assert [row.id for row in read_rows(file)] == ["x"]


def test_llava_s_ids_are_those_of_pictures(tmp_path):
    (tmp_path / "0.png").write_bytes(png(0))
    said = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "it"}]
    (tmp_path / "a.json").write_text(json.dumps([{"id": "7", "image": "0.png", "conversations": said}] * 3))
    assert [row.id for row in read_rows(tmp_path / "a.json")] == ["7", "7~2", "7~3"]


def test_the_hash_of_a_data_set_is_that_of_its_files(tmp_path):
    file = as_jsonl(tmp_path)
    alone = rows_sha256(file)
    assert rows_sha256(tmp_path) == alone
    (tmp_path / "b.jsonl").write_text(json.dumps(question(1)))
    both = rows_sha256(tmp_path)
    assert both != alone
    (tmp_path / "b.jsonl").write_text(json.dumps(question(2)))
    assert len({rows_sha256(tmp_path), both, alone}) == 3


def test_files_that_are_no_data_set(tmp_path):
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(MvlmError, match=r"a\.csv is no data file: \.jsonl, \.json"):
        data_files(tmp_path / "a.csv")
    with pytest.raises(MvlmError, match="there are no rows at"):
        data_files(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"")
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(MvlmError, match=r"holds \.jsonl and \.parquet files"):
        data_files(tmp_path)


BROKEN = {
    "a.parquet": (b"no parquet", r"a\.parquet cannot be read"),
    "a.tar": (b"no tar" * 200, r"a\.tar cannot be read: a\.tar: no tar, or one cut short"),
    "a.jsonl": (b'{"id": 1,\n', r"line 1: not valid JSON"),
    "a.json": (b'[{"id": 1]', "not valid JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("read", [read_rows, lambda path: list(stream_rows(path))], ids=["whole", "streamed"])
def test_files_that_cannot_be_read(tmp_path, name, read):
    held, says = BROKEN[name]
    (tmp_path / name).write_bytes(held)
    with pytest.raises(MvlmError, match=says):
        read(tmp_path / name)


@pytest.mark.parametrize("read", [read_rows, lambda path: list(stream_rows(path))], ids=["whole", "streamed"])
def test_every_broken_sample_of_a_tar_is_named(tmp_path, read):
    good = json.dumps(question(1)).encode()
    file = write_tar(tmp_path / "a.tar", {"x.json": b"{", "y.json": good, "z.json": b"nothing"})
    with pytest.raises(MvlmError, match=r"a\.tar, sample x\.json: not valid JSON .*sample z\.json: not valid JSON"):
        read(file)


def test_a_tar_that_would_grow_as_it_is_read(tmp_path):
    """A member of two gigabytes by its head, as a sparse one has it; and a compressed tar."""
    head = tarfile.TarInfo("1.json")
    head.size = 2**31
    (tmp_path / "large.tar").write_bytes(head.tobuf() + bytes(10240))
    with pytest.raises(MvlmError, match=r"large\.tar holds '1\.json' of 2147483648 bytes: split it"):
        read_rows(tmp_path / "large.tar")
    with tarfile.open(tmp_path / "small.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.json"))
    with pytest.raises(MvlmError, match=r"small\.tar: no tar, or one cut short"):
        read_rows(tmp_path / "small.tar")


def test_a_tar_cut_short(tmp_path):
    file = as_tar(tmp_path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    with pytest.raises(MvlmError, match=r"a\.tar"):
        read_rows(file)


def test_samples_without_json_and_faults_in_tables(tmp_path):
    file = write_tar(tmp_path / "a.tar", {"x.png": png(0), "y.json": json.dumps(question(1)).encode()})
    with pytest.raises(MvlmError, match=r"row 0 of train, sample x: no x\.json beside"):
        read_rows(file)
    rows = [question(1, split=None), question(2, answers=[]), question(3, split="dev"), question(None)]
    datasets.Dataset.from_list([row | {"id": row["id"] if row["id"] != "None" else None} for row in rows]).to_parquet(
        tmp_path / "b.parquet"
    )
    with pytest.raises(MvlmError) as error:
        read_rows(tmp_path / "b.parquet")
    for says in ("row 1 of train, id 2: no answers", "row 2 of train, id 3: split 'dev'", "row 3 of train: no id"):
        assert says in str(error.value)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_file_that_was_replaced_at_an_equal_time_is_read_anew(tmp_path, kind):
    """The cache of `datasets` knows a file by its name and time; the hash of the rows is of what it holds."""
    seen = []
    for answer in ("old", "new"):
        row = question(1, answers=[answer])
        if kind == "tar":
            file = write_tar(tmp_path / "a.tar", {"1.json": json.dumps(row).encode()})
        else:
            file = tmp_path / "a.parquet"
            datasets.Dataset.from_list([row]).to_parquet(file)
        os.utime(file, (1e9, 1e9))
        seen.append(read_rows(file)[0].turns[0].answers)
    assert seen == [("old",), ("new",)]


@pytest.mark.parametrize(
    ("held", "fault"),
    [(json.dumps(question(1, question="\ud83d")).encode(), "1.json: it holds half a character"),
     (b"[" * 200_000, "1.json: not valid JSON .nested too deep"), (b"\xff\xfe{", "1.json: not UTF-8")],
)  # fmt: skip
def test_a_sample_of_a_tar_that_cannot_be_read_is_named(tmp_path, held, fault):
    with pytest.raises(MvlmError, match=fault):
        read_rows(write_tar(tmp_path / "a.tar", {"1.json": held}))


def test_a_picture_whose_file_changed_meanwhile_is_refused(tmp_path):
    file = as_data_urls(tmp_path)
    picture = read_rows(file)[0].pictures[1]
    first, *rest = file.read_text().splitlines()
    row = json.loads(first)
    for other in (row | {"images": row["images"][:1] * 2}, row | {"messages": MESSAGES[2:], "images": []}, {}, []):
        file.write_text("\n".join([json.dumps(other), *rest]))
        with pytest.raises(MvlmError, match="its file was changed"):
            picture.read()


def test_rows_with_a_picture_inside_share_its_hash_and_not_its_bytes(tmp_path):
    rows = read_rows(as_data_urls(tmp_path))
    assert rows[0].group == rows[1].group == rows[0].pictures[0].key


def test_a_stream_stops_at_the_first_fault(tmp_path):
    lines = [question(1), question(2, answers=[]), question(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stream = stream_rows(tmp_path / "a.jsonl")
    assert next(stream).id == "1"
    with pytest.raises(MvlmError, match="line 2, id 2: no answers"):
        next(stream)


class _Ids(IterableDataset):
    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self):
        return iter([row.id for row in stream_rows(self.path)])


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_every_worker_of_a_loader_reads_the_whole_stream(tmp_path, kind):
    for shard in range(3):
        if kind == "tar":
            write_tar(tmp_path / f"{shard}.tar", {f"{shard}-{i}.json": json.dumps(question(i)).encode() for i in "ab"})
        else:
            told = [question(f"{shard}-{i}") for i in "ab"]
            datasets.Dataset.from_list(told).to_parquet(tmp_path / f"{shard}.parquet")
    ids = [row.id for row in stream_rows(tmp_path)]
    assert len(ids) == 6
    loader = DataLoader(_Ids(tmp_path), batch_size=None, num_workers=2)
    assert sorted(loader) == sorted(ids * 2)


def test_reading_leaves_the_settings_of_datasets_alone(tmp_path):
    datasets.enable_progress_bars()
    before = datasets.logging.get_verbosity()
    read_rows(as_parquet(tmp_path))
    assert not datasets.are_progress_bars_disabled()
    assert datasets.logging.get_verbosity() == before


def test_the_picture_of_a_key_is_the_picture(tmp_path):
    """Two rows with the same bytes share a picture; a file in another folder is another one."""
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    held = (tmp_path / "0.png").read_bytes()
    rows = [question(i) | {"image": {"bytes": held, "path": f"{i}.png"}} for i in range(2)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    one, two = read_rows(tmp_path / "a.parquet")
    assert one.pictures == two.pictures
    assert one.group == two.group
