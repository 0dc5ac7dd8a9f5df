"""The files of the search page, and how they are served."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from image_encoders.serve.assets import TYPES, Assets
from image_encoders.serve.pages import HEADERS, PAGE, pages


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(pages())
    return TestClient(app)


def test_every_file_of_the_folder_is_served_with_its_type(client: TestClient):
    for path in PAGE.iterdir():
        answer = client.get(f"/page/{path.name}")
        assert (answer.status_code, answer.content) == (200, path.read_bytes())
        assert answer.headers["content-type"] == TYPES[path.suffix]


@pytest.mark.parametrize("path", ["/search", "/login", "/page/app.js", "/page/style.css"])
def test_no_answer_allows_inline_code_or_another_host(client: TestClient, path: str):
    headers = client.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_a_file_that_the_browser_has_is_not_sent_again(client: TestClient):
    first = client.get("/page/app.js")
    again = client.get("/page/app.js", headers={"If-None-Match": f'"another", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert client.get("/page/app.js", headers={"If-None-Match": '"another"'}).status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "..%2fpages.py", "%2e%2e%2fpages.py", "..", "pages.py"])
def test_only_the_page_s_files_are_served(client: TestClient, name: str):
    assert client.get(f"/page/{name}").status_code == 404


def test_no_file_names_another_host_or_holds_inline_code():
    for name, file in Assets(PAGE, HEADERS).files.items():
        text = file.content.decode()
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name  # the name of a language, not fetched
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
        if name.endswith(".html"):
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text), name


def test_every_file_that_the_page_names_is_there():
    files = Assets(PAGE, HEADERS).files
    for name, file in files.items():
        text = file.content.decode()
        named = re.findall(r'(?:href|src)="page/([^"]+)"', text) + re.findall(r'from "\./([^"]+)"', text)
        assert set(named) <= set(files), name


def test_the_page_stays_small():
    assert sum(len(file.content) for file in Assets(PAGE, HEADERS).files.values()) < 60_000


def test_the_login_says_what_it_is_asked_to_and_leads_nowhere_else(client: TestClient):
    plain = client.get("/login")
    assert 'value="search"' in plain.text
    assert 'role="alert"' not in re.sub("<!--.*?-->", "", plain.text)
    asked = client.get("/login", params={"next": 'search?q="&sort=newest', "failed": "1"}).text
    assert 'value="search?q=&quot;&amp;sort=newest"' in asked
    assert 'role="alert"' in re.sub("<!--.*?-->", "", asked)
    for elsewhere in ("https://example.com", "//example.com", "/\\example.com", "\\example", "javascript:alert(1)"):
        assert 'value="search"' in client.get("/login", params={"next": elsewhere}).text
