"""The example applications, as processes of their own: pages, an agent, conflicts, merges.

Both are played by the same script, over HTTP; Django's in a browser too. Before they were converted
(the guide's diffs, taken back) they lose an update: that is what the script is able to see.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import psycopg
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import staleness_of
from selenium.webdriver.support.wait import WebDriverWait

from pyconcord import install
from tests.pages import Person
from tests.support import AnyServer, Database

TOP = Path(__file__).resolve().parents[2]
GUIDE = TOP / "docs" / "convert.md"
MOST_LINES = 15


class Site:
    """An example, running."""

    def __init__(self, framework: str, directory: Path, db: Database) -> None:
        self.framework, self.db, self._directory = framework, db, directory
        self._environment = {
            **os.environ,
            "DATABASE_URL": db.dsn(),
            "PYTHONPATH": str(TOP),
            "PYTHONUNBUFFERED": "1",
        }
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    def run(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self._directory,
            env=self._environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **options,
        )

    def does(self, *arguments: str) -> None:
        process = self.run(*arguments)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output

    @contextmanager
    def served(self) -> Iterator[None]:
        if self.framework == "django":
            self.does("manage.py", "makemigrations", "--check", "--dry-run")
            self.does("manage.py", "migrate", "-v0")
            self.does("manage.py", "sample")
            server = self.run("manage.py", "runserver", "--noreload", f"127.0.0.1:{self._port}")
        else:
            with psycopg.connect(self.db.dsn(), autocommit=True) as connection:
                install.install(connection)
            self.does("sample.py")
            server = self.run("-m", "flask", "run", "--port", str(self._port))
        try:
            self._until_it_answers(server)
            yield
        finally:
            server.terminate()
            server.communicate(timeout=30)

    def _until_it_answers(self, server: subprocess.Popen[str]) -> None:
        for _ in range(600):
            if server.poll() is not None:
                raise AssertionError(server.communicate()[0])
            try:
                urllib.request.urlopen(f"{self.url}/login/", timeout=60).close()
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError("it does not answer")

    def agent(self) -> subprocess.Popen[str]:
        """It has read the deck, and thinks until it is told to go on."""
        script = ("manage.py", "agent") if self.framework == "django" else ("agent.py",)
        process = self.run(*script, "1")
        assert process.stdout is not None
        prompt = ""
        while not prompt.endswith(": "):
            letter = process.stdout.read(1)
            assert letter, prompt
            prompt += letter
        return process

    def person(self, name: str) -> Person:
        person = Person(self.url)
        person.goes_to("/")
        if self.framework == "django":
            person.sends(username=name, password="concord")
        else:
            person.sends(name=name)
        assert "Board meeting" in person.page
        return person

    def slide(self) -> tuple[str, str]:
        table = "decks_slide" if self.framework == "django" else "slides"
        with psycopg.connect(self.db.dsn()) as connection:
            found = connection.execute(f"select title, body from {table} where id = 1").fetchone()
        assert found is not None
        return found

    def summary(self) -> str:
        table = "decks_deck" if self.framework == "django" else "decks"
        with psycopg.connect(self.db.dsn()) as connection:
            [[found]] = connection.execute(f"select summary from {table}").fetchall()
        return str(found)


@pytest.fixture(params=["django", "sqlalchemy"])
def framework(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def empty(server: AnyServer) -> Iterator[Database]:
    """A database without the pack: the examples install it themselves."""
    name = f"example_{secrets.token_hex(6)}"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"create database {name}")
        yield Database(name, server)
        connection.execute(f"drop database {name} with (force)")


@pytest.fixture
def site(framework: str, empty: Database) -> Iterator[Site]:
    site = Site(framework, TOP / "examples" / framework, empty)
    with site.served():
        yield site


# --- the converted applications -------------------------------------------------------------------


def test_two_people_on_one_slide(site: Site) -> None:
    ana, ben = site.person("ana"), site.person("ben")
    ana.goes_to("/slides/1")
    ben.goes_to("/slides/1")
    ben.sends(body="ben's body")
    ana.sends(title="ana's title")
    assert site.slide() == ("ana's title", "ben's body")


def test_a_conflict_and_its_merge(site: Site) -> None:
    ana, ben = site.person("ana"), site.person("ben")
    ana.goes_to("/slides/1")
    ben.goes_to("/slides/1")
    ben.sends(title="ben's", body="ben's body")
    page = ana.sends(title="ana's")
    assert "was changed meanwhile" in page
    cells = [unescape(cell) for cell in re.findall(r"<td>(.*?)(?:<br><em>.*?</em>)?</td>", page)]
    assert cells == ["Where we stand", "ben's", "ana's"]
    assert site.slide() == ("ben's", "ben's body")
    ana.sends(title="ana's and ben's")
    assert site.slide() == ("ana's and ben's", "ben's body")


def test_an_agent_among_people(site: Site) -> None:
    """Its summary rests on all slides: it reads again. A title that was changed stays."""
    ana = site.person("ana")
    ana.goes_to("/slides/1")
    agent = site.agent()
    ana.sends(title="Ana's title", body="We stand well. Do we?")
    assert agent.stdin is not None
    output, _ = agent.communicate("\n\n", timeout=120)
    assert "reads again: " in output
    assert output.endswith("done\n"), output
    assert site.summary().startswith("We stand well. ")
    assert site.slide()[1] == "We stand well. Do we?"


# --- in a browser ---------------------------------------------------------------------------------


class Browser:
    """A headless Chromium, in which somebody is logged in."""

    def __init__(self, site: Site, name: str, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        options.add_argument("--headless=new")
        options.add_argument("--no-sandbox")  # which needs what a container may not have
        options.add_argument("--disable-dev-shm-usage")
        options.add_argument("--window-size=900,760")
        options.add_argument(f"--user-data-dir={profile}")
        service = webdriver.ChromeService(str(shutil.which("chromedriver")))
        self.driver = webdriver.Chrome(options, service)
        self._site = site.url
        self.goes_to("/")
        self.types(username=name, password="concord")
        self.presses("Log in")
        assert self.heading == "Decks"

    def goes_to(self, path: str) -> None:
        self.driver.get(self._site + path)

    def types(self, **fields: str) -> None:
        for name, text in fields.items():
            field = self.driver.find_element(By.NAME, name)
            field.clear()
            field.send_keys(text)

    def presses(self, button: str) -> None:
        page = self.driver.find_element(By.TAG_NAME, "html")
        self.driver.find_element(By.XPATH, f"//button[.='{button}']").click()
        WebDriverWait(self.driver, 60).until(staleness_of(page))

    @property
    def heading(self) -> str:
        return str(self.driver.find_element(By.TAG_NAME, "h1").text)

    @property
    def text(self) -> str:
        return str(self.driver.find_element(By.TAG_NAME, "body").text)


@pytest.mark.browser
@pytest.mark.parametrize("framework", ["django"])
def test_in_a_browser(site: Site, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """Form, conflict, merge, save."""
    pictures = pytestconfig.getoption("--screenshots")
    browsers = []

    def browser(name: str) -> Browser:
        made = Browser(site, name, tmp_path / name)
        browsers.append(made)
        return made

    def picture(of: Browser, name: str) -> None:
        if pictures:
            of.driver.save_screenshot(str(Path(pictures) / f"{name}.png"))

    try:
        ana, ben = browser("ana"), browser("ben")
        for each in (ana, ben):
            each.goes_to("/slides/1/")
            assert each.heading == "Slide 1"
        ben.types(title="Where we stand today", body="Revenue grew by 12 %.")
        picture(ben, "edit")
        ben.presses("Save")
        assert ben.heading == "Board meeting"
        ana.types(title="Our position")
        ana.presses("Save")
        assert ana.heading == "Slide 1 was changed meanwhile"
        picture(ana, "merge")
        for told in ("Where we stand", "Where we stand today", "Our position", "ben"):
            assert told in ana.text
        assert site.slide() == ("Where we stand today", "Revenue grew by 12 %.")
        ana.types(title="Our position today")
        ana.presses("Save what stands here")
        assert ana.heading == "Board meeting"
        assert "Our position today" in ana.text
        assert site.slide() == ("Our position today", "Revenue grew by 12 %.")
    finally:
        for each in browsers:
            each.driver.quit()


# --- the guide ------------------------------------------------------------------------------------


def diff_of(framework: str) -> str:
    found = re.findall(r"```diff\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    [diff] = [each for each in found if f"examples/{framework}/" in each]
    return str(diff)


def test_how_many_lines_change(framework: str) -> None:
    added = re.findall(r"^\+(?!\+\+ )\s*\S", diff_of(framework), re.MULTILINE)
    assert 5 < len(added) <= MOST_LINES, len(added)


@pytest.fixture
def unconverted(framework: str, empty: Database, tmp_path: Path) -> Iterator[Site]:
    """The example with the guide's diff taken back."""
    shutil.copytree(TOP / "examples", tmp_path / "examples")
    subprocess.run(
        ["patch", "--reverse", "--strip=1", "--no-backup-if-mismatch"],
        input=diff_of(framework),
        cwd=tmp_path,
        check=True,
        text=True,
    )
    site = Site(framework, tmp_path / "examples" / framework, empty)
    with site.served():
        yield site


def test_before_it_is_converted_an_update_is_lost(unconverted: Site) -> None:
    with psycopg.connect(unconverted.db.dsn()) as connection:
        tracked = connection.execute("select to_regclass('concord.models')").fetchone()
        if tracked != (None,):
            assert connection.execute("select count(*) from concord.models").fetchone() == (0,)
    ana, ben = unconverted.person("ana"), unconverted.person("ben")
    ana.goes_to("/slides/1")
    ben.goes_to("/slides/1")
    ben.sends(body="ben's body")
    ana.sends(title="ana's title")
    title, body = unconverted.slide()
    assert title == "ana's title"
    assert body.startswith("Revenue grew")  # and so ben's is gone
