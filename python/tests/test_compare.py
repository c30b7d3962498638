"""The package against the command line, which is another program: numbers, messages, rows.

NESTWALK is the path of the command line. `python -m unittest discover python/tests` runs them.
"""

import array
import csv
import io
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import threading
import unittest
import warnings

import nestwalk

try:
    import numpy
except ImportError:
    numpy = None

SAMPLES = pathlib.Path(__file__).parents[2] / "samples"
SMALL = {"footprint": "8MiB", "accesses": 20_000}
OPTIONS = ["--footprint", "8MiB", "--accesses", "20000"]
FIXED = "machine key value unit source profile pages seed version commit input_hash".split()


def command(*words, fails=False):
    """What the command line prints, or says if it fails."""
    program = os.environ["NESTWALK"]
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    if fails:
        assert done.returncode == 2, done.stdout
        return done.stderr.strip().removeprefix("nestwalk: ")
    assert done.returncode == 0, done.stderr
    return done.stdout


def compared(*words):
    return json.loads(command("compare", *words, "--quiet", "--format", "json"))


class Numbers(unittest.TestCase):
    """Results are those of the command line."""

    def setUp(self):
        warnings.simplefilter("error")

    def test_are_those_of_the_command_line(self):
        for source, machines, settings, options in [
            ("gups", "native,shadow,nested", SMALL, OPTIONS),
            ("zipf:theta=0.9", "nested:2m+4k", {**SMALL, "populate": False, "seed": 3}, [*OPTIONS, "--populate", "no", "--seed", "3"]),
            ("storm", "shadow,switching", {"accesses": "300k"}, ["--accesses", "300k"]),
        ]:
            with self.subTest(source):
                results = nestwalk.compare(source, machines=machines.split(","), **settings)
                self.assertEqual(results.to_dict(), compared(source, "--machines", machines, *options))
                self.assertTrue(results.complete)

    def test_do_not_depend_on_threads(self):
        one, two = (nestwalk.compare("gups", threads=n, **SMALL).to_dict() for n in (1, 2))
        self.assertEqual(one, two)

    def test_are_those_over_seeds(self):
        results = nestwalk.compare("gups", machines="nested", repeat=3, **SMALL)
        of = compared("gups", "--machines", "nested", "--repeat", "3", *OPTIONS)
        self.assertEqual(results.to_dict(), of)
        self.assertEqual({row["seed"] for row in results.rows()}, {1, 2, 3})

    def test_rows_are_those_of_the_long_form(self):
        results = nestwalk.compare("gups", machines="nested", **SMALL)
        text = command("compare", "gups", "--machines", "nested", *OPTIONS, "--quiet", "--long", "--format", "csv")
        rows = list(csv.DictReader(io.StringIO(text)))
        self.assertEqual(list(rows[0]), FIXED)
        found = [{key: str(value) for key, value in row.items()} for row in results.rows()]
        # What is built for Python may say another commit.
        for row in [*rows, *found]:
            del row["commit"]
        self.assertEqual(found, rows)

    def test_the_configuration_repeats_it(self):
        results = nestwalk.compare("gups", machines="nested", walk_map=False, **SMALL)
        with tempfile.TemporaryDirectory() as folder:
            results.save(folder)
            again = command("run", f"{folder}/config.toml", "--quiet", "--format", "json")
            with open(f"{folder}/results.json", encoding="utf-8") as file:
                self.assertEqual(json.load(file), json.loads(again))
            command("report", folder, "-o", f"{folder}/report.html")


class Arrays(unittest.TestCase):
    """Addresses in memory."""

    def test_are_as_the_same_addresses_in_a_trace(self):
        # A store to each line of 3000 pages, a page at a time, and a load of every third page.
        stores = [0x10_0000 + line * 64 for line in range(3000 * 64)]
        loads = [0x10_0000 + page * 3 * 4096 for page in range(1000)]
        addresses = array.array("Q", stores + loads)
        writes = bytes([1] * len(stores) + [0] * len(loads))
        results = nestwalk.compare(nestwalk.Array(addresses, writes), machines="nested")
        with tempfile.NamedTemporaryFile("w", suffix=".din") as file:
            for address, write in zip(addresses, writes):
                file.write(f"{write} {address:x}\n")
            file.flush()
            trace = compared(file.name, "--machines", "nested")
        self.assertEqual(results.to_dict()["machines"], trace["machines"])
        self.assertEqual(results.machines[0]["accesses"], len(addresses))

    def test_of_different_contents_are_different_sources(self):
        def source(address):
            return nestwalk.compare(array.array("Q", [address] * 9), machines="nested").to_dict()["source"]

        self.assertNotEqual(source(0x1000), source(0x2000))
        self.assertEqual(source(0x1000), source(0x1000))

    def test_are_processes_beside_others(self):
        pages = array.array("Q", range(0x10_0000, 0x20_0000, 4096))
        results = nestwalk.compare([pages, pages, "gups"], machines="nested", accesses=2000)
        self.assertEqual(results.to_dict()["guests"]["4k"]["processes"], 3)

    def test_that_are_none_are_told(self):
        for source, told in [
            (array.array("l", [1]), "addresses: array: must be of 64-bit unsigned integers"),
            (7, "source: a int is no name, no path and no array of addresses"),
            (array.array("Q"), "the source made no access"),
            (b"1234", "addresses: bytes: must be of 64-bit unsigned integers"),
        ]:
            with self.subTest(told), self.assertRaises(nestwalk.Error) as caught:
                nestwalk.compare(source, machines="nested")
            self.assertIn(told, str(caught.exception))
        with self.assertRaises(nestwalk.Error) as caught:
            nestwalk.Array(array.array("Q", [1, 2]), b"1")
        self.assertEqual(str(caught.exception), "writes: 1 of them, and 2 addresses")

    @unittest.skipIf(numpy is None, "numpy is not installed")
    def test_of_numpy(self):
        random = numpy.random.default_rng(1)
        addresses = random.integers(0x10_0000, 0x200_0000, 100_000, dtype=numpy.uint64)
        writes = random.random(len(addresses)) < 0.3
        results = nestwalk.compare(nestwalk.Array(addresses, writes, name="mine"), machines=["nested"])
        self.assertTrue(results.to_dict()["source"].startswith("array:mine:"))
        same = nestwalk.compare(nestwalk.Array(array.array("Q", addresses.tolist()), bytes(writes.tolist())), machines="nested")
        self.assertEqual(results.machines, same.machines)
        # Every second one, without a copy of all.
        half = nestwalk.compare(nestwalk.Array(addresses[::2], writes[::2]), machines="nested")
        same = nestwalk.Array(addresses[::2].copy(), writes[::2].copy())
        self.assertEqual(half.to_dict(), nestwalk.compare(same, machines="nested").to_dict())
        for wrong, told in [
            (addresses.astype(numpy.int64), "addresses: array of int64: must be of 64-bit unsigned"),
            (addresses.reshape(2, -1), "addresses: 2 dimensions, and one is needed"),
        ]:
            with self.assertRaises(nestwalk.Error) as caught:
                nestwalk.compare(wrong)
            self.assertIn(told, str(caught.exception))


class Tables(unittest.TestCase):
    """What pandas and polars get, and what is shown."""

    @classmethod
    def setUpClass(cls):
        cls.results = nestwalk.compare("gups", machines="native,nested", **SMALL)

    def test_of_pandas(self):
        try:
            import pandas
        except ImportError:
            self.skipTest("pandas is not installed")
        self._look(self.results.to_pandas().to_dict("list"), self.results.to_pandas(long=True))
        self.assertTrue(pandas.api.types.is_float_dtype(self.results.to_pandas(long=True)["value"]))

    def test_of_polars(self):
        try:
            import polars
        except ImportError:
            self.skipTest("polars is not installed")
        self._look(self.results.to_polars().to_dict(as_series=False), self.results.to_polars(long=True))
        self.assertEqual(self.results.to_polars(long=True)["value"].dtype, polars.Float64)

    def _look(self, wide, long):
        machines = self.results.machines
        self.assertEqual(wide["name"], [m["name"] for m in machines])
        self.assertEqual(wide["walks"], [m["walks"] for m in machines])
        self.assertEqual(wide["page_table_bytes.nested"], [m["page_table_bytes"]["nested"] for m in machines])
        self.assertEqual(list(long.columns), [*FIXED, "text"])
        self.assertEqual(len(long), len(self.results.rows()))

    def test_are_shown(self):
        nested = self.results.machines[-1]
        walks = f"{1000 * nested['walks'] / nested['instructions']:.2f}"
        for text in (repr(self.results), self.results._repr_html_()):
            self.assertIn("nested:4k+4k", text)
            self.assertIn(walks, text)
        self.assertIn(self.results.verdict, repr(self.results))


class Errors(unittest.TestCase):
    """Bad input is told in the words of the command line."""

    def test_have_the_words_of_the_command_line(self):
        for settings, options in [
            ({"machines": "nestd"}, ["--machines", "nestd"]),
            ({"footprint": "lots"}, ["--footprint", "lots"]),
            ({"profile": "z80"}, ["--profile", "z80"]),
            ({"vcpus": 0}, ["--vcpus", "0"]),
            ({"guest_paging": "3-level"}, ["--guest-paging", "3-level"]),
            ({"guest_fragmentation": 2}, ["--guest-fragmentation", "2"]),
        ]:
            (key,) = settings
            with self.subTest(key), self.assertRaises(nestwalk.Error) as caught:
                nestwalk.compare("gups", **settings)
            # Names of options are names of arguments here.
            said = command("compare", "gups", "--quiet", *options, fails=True)
            dashes = f"--{key.replace('_', '-')}"
            self.assertEqual(str(caught.exception), said.replace(dashes, key))
            self.assertIsInstance(caught.exception, ValueError)
            self.assertIsNone(caught.exception.results)

    def test_no_such_source(self):
        with self.assertRaises(nestwalk.Error) as caught:
            nestwalk.compare("gusp")
        self.assertEqual(str(caught.exception), command("compare", "gusp", "--quiet", fails=True))

    def test_a_damaged_trace_keeps_what_was_before(self):
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/cut.champsim.gz"
            words = str(SAMPLES / "words.nwt")
            command("trace", "convert", words, path, "--user-only", "--quiet")
            os.truncate(path, os.path.getsize(path) * 2 // 3)
            with self.assertRaises(nestwalk.Error) as caught:
                nestwalk.compare(path, machines="nested")
        results = caught.exception.results
        self.assertFalse(results.complete)
        self.assertGreater(results.machines[0]["accesses"], 0)

    def test_arguments_that_do_not_exist(self):
        with self.assertRaises(TypeError):
            nestwalk.compare("gups", foot_print="1GiB")
        for name in ("repeat", "threads"):
            with self.assertRaises(nestwalk.Error):
                nestwalk.compare("gups", **{name: 0}, **SMALL)


class Runs(unittest.TestCase):
    """What happens while a run is under way."""

    LONG = {"footprint": "64MiB", "accesses": 400_000_000, "machines": "nested"}

    def test_an_interrupt_ends_it_and_keeps_what_was_counted(self):
        # A shell's background jobs ignore it, and Python then leaves it so.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        timer = threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with self.assertRaises(nestwalk.Interrupted) as caught:
            nestwalk.compare("uniform", **self.LONG)
        self.assertIsInstance(caught.exception, KeyboardInterrupt)
        self.assertIn("interrupted", str(caught.exception))
        results = caught.exception.results
        self.assertFalse(results.complete)
        self.assertGreater(results.machines[0]["accesses"], 0)

    def test_other_threads_run_meanwhile(self):
        ticks, over = [], threading.Event()

        def tick():
            while not over.wait(0.01):
                ticks.append(None)

        thread = threading.Thread(target=tick)
        thread.start()
        nestwalk.compare("uniform", machines="nested", footprint="64MiB", accesses=3_000_000)
        over.set()
        thread.join()
        self.assertGreater(len(ticks), 10)

    def test_progress_is_told_and_its_errors_come_through(self):
        told = []
        nestwalk.compare("uniform", machines="nested", footprint="64MiB", accesses=5_000_000, progress=lambda *how: told.append(how))
        self.assertTrue(told)
        running = [how for how in told if how[0] == "running"]
        self.assertTrue(running)
        self.assertEqual({total for _, _, total in running}, {5_000_000})
        done = [how[1] for how in running]
        self.assertEqual(done, sorted(done))

        def fail(*_):
            raise RuntimeError("enough")

        with self.assertRaisesRegex(RuntimeError, "enough"):
            nestwalk.compare("uniform", progress=fail, **self.LONG)


if __name__ == "__main__":
    unittest.main()
