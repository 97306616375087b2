"""Finding photos: what counts, in which order, under which names; links, gaps and clashes."""

import os

import pytest

from sst_d2.errors import SSTDataError
from sst_d2.inference.sources import find_photos


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Folders with empty files: nothing is opened to find them."""
    for name in ("a.jpg", "b c.PNG", "notes.txt", "sub/a.jpg", "sub/größe 中/x.webp", ".git/a.jpg", "sub/._a.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def names(*inputs, **keys):
    return [photo.name for photo in find_photos([str(one) for one in inputs], **keys).photos]


def test_of_a_folder_all_photos_below_it_count_by_their_ending_and_keep_their_folders(tree):
    expected = ["a", "b c", "sub/a", "sub/größe 中/x"]
    assert names(tree) == expected == names("photos") == names("photos/")
    assert [photo.path for photo in find_photos(["photos"]).photos][1] == "photos/b c.PNG"


def test_files_that_are_named_are_tried_whatever_their_ending_is(tree):
    assert names("photos/notes.txt", "photos/a.jpg", "photos/a.jpg") == ["notes", "a"]


def test_globs_start_their_names_before_the_first_wildcard(tree):
    assert names("photos/*.jpg") == ["a"]
    assert names("photos/**/*.jpg") == ["a", "sub/a"]
    assert names("photos/s*") == ["sub/a", "sub/größe 中/x"]
    (tree / "[1].jpg").touch()
    assert names("photos/[1].jpg") == ["[1]"]  # there is such a file


def test_several_inputs_start_their_names_from_the_folder_that_they_share(tree):
    (tree / "other").mkdir()
    (tree / "other" / "a.jpg").touch()
    assert names("photos/sub", "photos/other") == ["sub/a", "sub/größe 中/x", "other/a"]
    assert names("photos/sub/a.jpg", tree / "other/a.jpg") == ["sub/a", "other/a"]


def test_the_home_folder_may_be_a_tilde(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree))
    assert names("~/sub") == ["a", "größe 中/x"]


def test_photos_that_differ_in_their_ending_alone_keep_it(tree):
    (tree / "a.png").touch()
    assert names(tree) == ["a.jpg", "a.png", "b c", "sub/a", "sub/größe 中/x"]
    (tree / "a.jpg.gif").touch()
    with pytest.raises(SSTDataError, match=r"their results have one name; rename one of them"):
        find_photos([str(tree)])


def test_links_are_followed_and_no_folder_counts_twice(tree, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "z.jpg").touch()
    os.symlink("..", tree / "sub" / "up")
    os.symlink(tmp_path / "elsewhere", tree / "link")
    os.symlink(tmp_path / "elsewhere", tree / "link2")
    os.symlink("nowhere.jpg", tree / "broken.jpg")  # found, so that reading it names it
    assert names(tree) == ["a", "b c", "broken", "link/z", "sub/a", "sub/größe 中/x"]


def test_the_folder_of_the_results_is_not_searched(tree):
    assert names(tree, leave_out=tree / "sub") == ["a", "b c"]
    assert names(tree, leave_out=tree / "none") == ["a", "b c", "sub/a", "sub/größe 中/x"]
    with pytest.raises(SSTDataError, match="photos: is the folder of the photos and of the results"):
        find_photos([str(tree)], leave_out=tree)


@pytest.mark.parametrize("pattern", ["photos/*", "photos/**", "photos/**/*", "photos/sub*", "photos/*/*.jpg", "*"])
def test_globs_leave_the_folder_of_the_results_out(tree, pattern):
    before = names(pattern)
    (tree / "sub/out/deep").mkdir(parents=True)
    (tree / "sub/out/a.jpg").touch()
    (tree / "sub/out/deep/b.jpg").touch()
    assert names(pattern, leave_out=tree / "sub/out") == before
    os.symlink("sub/out", tree / "subway")
    assert names(pattern, leave_out="photos/subway") == before


def test_a_list_by_a_shell_leaves_the_folder_of_the_results_out_and_says_so(tree):
    (tree / "out").mkdir()
    (tree / "out/a.jpg").touch()
    listed = ["photos/a.jpg", "photos/out", "photos/out/a.jpg", "photos/sub"]
    assert names(*listed, leave_out="photos/out") == ["a", "sub/a", "sub/größe 中/x"]
    assert find_photos(listed, leave_out="photos/out").left_out == ["photos/out"]
    assert find_photos(["photos/*"], leave_out="photos/out").left_out == []


def test_photos_may_lie_in_the_folder_of_the_results_where_they_are_named(tree):
    assert names("photos/a.jpg", leave_out=tree) == ["a"] == names("photos/*.jpg", leave_out=tree)
    assert names("photos/sub/a.jpg", "photos/a.jpg", leave_out=tree / "sub") == ["sub/a", "a"]


def test_a_folder_that_cannot_be_read_is_named_and_the_rest_is_found(tree, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_photos([str(tree)])
    assert [photo.name for photo in found.photos] == ["a", "b c"]
    assert found.problems == [f"{tree}/sub: the folder cannot be read (Permission denied)"]
    with pytest.raises(SSTDataError, match=r"sub: the folder cannot be read \(Permission denied\); give photos"):
        find_photos([str(tree / "sub")])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("none.jpg", "none.jpg: there is no such file or folder"),
        ("photos/*.gif", r"photos/\*.gif: no file has such a name"),
        ("photos/empty", "photos/empty: no photo lies in it; give photos, or a folder or a glob"),
    ],
)
def test_what_is_not_there_is_one_sentence(tree, text, words):
    (tree / "empty").mkdir()
    with pytest.raises(SSTDataError, match=words):
        find_photos([text])


def test_names_that_are_no_text_are_found(tree):
    try:
        open(os.fsencode(tree) + b"/lat\xe9in.jpg", "w").close()
    except OSError:
        pytest.skip("this file system takes text alone")
    assert os.fsencode(names(tree)[2]) == b"lat\xe9in"
