"""One client of the soak test, in a process of its own: it does what comes to its mind until it is killed, and compares
every byte of every model that it gets with what the file has."""
import contextlib
import hashlib
import json
import mmap
import os
import random
import time
import traceback

from rocmforge_wire import Client, Closed, WireError

FORMS = ("auto", "native", "f32", "bf16")
LEASES_MAX = 3
DIED_BY_ITSELF = 7  # exit status

# What a client has to expect that does not look around first.
EXPECTED = {
    "Cancelled",
    "DeadlineExceeded",
    "FileChanged",  # the file that is read has lost its name to another, which the time of its last change tells
    "LimitExceeded",  # of the names that a model may have, of verifications
    "ModelBusy",
    "ModelNotFound",
    "NameInUse",
    "OutOfDeviceMemory",
    "PermissionDenied",  # the model is another user's
}

ACTIONS = (
    ["load"] * 7
    + ["attach"] * 7
    + ["detach"] * 5
    + ["look_again"] * 3
    + ["unload", "unload", "force", "pin", "ttl", "cancel", "verify", "plan", "list", "show", "watch", "leave", "die"]
)


def digest(data):
    return hashlib.blake2b(data, digest_size=16).digest()


class Shared:
    """Memory of the soak and all its clients."""

    CLIENTS_MAX = 64

    def __init__(self):
        self.memory = mmap.mmap(-1, 4096)
        self.generation = 1

    def _number(at):  # pylint: disable=no-self-argument
        def read(self):
            return int.from_bytes(self.memory[at : at + 8], "little")

        def write(self, value):
            self.memory[at : at + 8] = value.to_bytes(8, "little")

        return property(read, write)

    # Odd while no daemon runs that clients may expect something of, as at first.
    generation = _number(0)
    pause = _number(8)

    def rests(self, index, rests=None):
        """Whether a client has closed all that it had, and waits."""
        if rests is not None:
            self.memory[64 + index] = rests
        return self.memory[64 + index] != 0


class Wrong(Exception):
    """The daemon did what it must not do."""


class Held:
    """A lease, and the memory that it protects."""

    def __init__(self, client, reply, name):
        self.lease, self.model, self.name = reply["lease"], reply["model"], name
        self.tensors = reply["tensors"]
        fd = client.take_fd(reply["fd"])
        try:
            self.memory = mmap.mmap(fd, self.model["bytes"], mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(fd)
        self.version = None

    def differs(self, version):
        """The first tensor that has not the bytes of this version of the file; None: all have them."""
        if {tensor["name"] for tensor in self.tensors} != set(version.tensors):
            return "the names of tensors"
        with memoryview(self.memory) as view:
            for tensor in self.tensors:
                begin = tensor["offset"]
                with view[begin : begin + tensor["size"]] as data:
                    if digest(data) != version.tensors[tensor["name"]].get(tensor["form"]):
                        return f"{tensor['name']} as {tensor['form']}"
        return None

    def check(self, versions):
        """Its bytes are those of one of these versions, from now on of the same one. Returns how many bytes."""
        candidates = [self.version] if self.version else versions
        differences = [self.differs(version) for version in candidates]
        if None not in differences:
            raise Wrong(f"{self.name}, model {self.model['id']}: wrong bytes: {differences}")
        self.version = candidates[differences.index(None)]
        return sum(tensor["size"] for tensor in self.tensors)


class Person:
    """versions: for each path, what was ever there."""

    def __init__(self, index, uid, seed, socket, shared, versions, report):
        self.index, self.uid, self.socket, self.shared = index, uid, socket, shared
        self.versions, self.report = versions, report
        self.rng = random.Random(seed)
        self.client, self.leases, self.generation = None, [], 0
        self.version_of = {}  # by the model's id, as long as the daemon is the same
        self.recent = []  # (path, form, name) of loads

    def tell(self, action, outcome="", size=0, wrong=None):
        line = json.dumps({"action": action, "outcome": outcome, "bytes": size, "wrong": wrong and wrong[-1500:]})
        os.write(self.report, line.encode() + b"\n")

    def run(self):
        """Does not return."""
        while True:
            action = "begin"
            try:
                if self.shared.pause or self.shared.generation % 2:
                    self.rest()
                    continue
                if not self.client:
                    action = "connect"
                    self.connect()
                    continue
                action = self.rng.choice(ACTIONS)
                size = getattr(self, action)()
                if size is not None:
                    self.tell(action, "", size)
            except WireError as error:
                self.refused(action, error)
            except (Closed, ConnectionError, FileNotFoundError) as error:
                self.gone(action, error)
            except Exception as error:  # pylint: disable=broad-except
                why = str(error) if isinstance(error, Wrong) else traceback.format_exc()
                self.tell(action, "wrong", wrong=f"{action}: {why}")
                self.close()

    def connect(self):
        self.generation = self.shared.generation
        if self.generation % 2:
            return
        self.client = Client(self.socket, timeout=60)
        self.version_of = {}

    def close(self):
        if self.client:
            self.client.close()
        self.client = None
        for held in self.leases:
            held.memory.close()
        self.leases = []

    def rest(self):
        self.look_at_all()
        self.close()
        self.shared.rests(self.index, True)
        while self.shared.pause or self.shared.generation % 2:
            time.sleep(0.01)
        self.shared.rests(self.index, False)

    def refused(self, action, error):
        outcome = error.name
        if outcome == "ShuttingDown" and self.generation != self.shared.generation:
            self.gone(action, error)
        else:
            self.tell(action, outcome, wrong=None if outcome in EXPECTED else f"{action}: {error}")

    def gone(self, action, error):
        """The daemon was killed or stopped: what was mapped stays as it was."""
        lost = self.generation == self.shared.generation
        self.tell(action, "daemon gone", wrong=f"{action}: the connection ended: {error!r}" if lost else None)
        try:
            self.look_at_all()
        except Wrong as wrong:
            self.tell(action, "wrong", wrong=f"after the daemon's end: {wrong}")
        self.close()
        time.sleep(0.01)

    def look_at_all(self):
        for held in self.leases:
            self.tell("look_again", "", held.check([]))

    # --- What it does. Returns how many bytes it has compared; None: nothing was done ---

    def path(self):
        return self.rng.choice(list(self.versions))

    def form_and_name(self, path):
        form = self.rng.choice(FORMS)
        own = f"u{self.uid}." if self.rng.random() < 0.2 else ""
        return form, f"{own}{path.stem}.{form}"

    def some_model(self):
        """A path, a form and a name: most times one that was loaded a while ago."""
        if self.recent and self.rng.random() < 0.7:
            return self.rng.choice(self.recent)
        path = self.path()
        return path, *self.form_and_name(path)

    def deadline(self):
        return self.rng.choice([None, None, None, 0.001, 0.02, 1])

    def keep(self, reply, name, versions):
        """A lease was granted."""
        held = Held(self.client, reply, name)
        try:
            size = held.check(versions)
            before = self.version_of.setdefault(held.model["id"], held.version)
            if before is not held.version:
                raise Wrong(f"{name}: model {held.model['id']} had other bytes before")
        except Wrong:
            held.memory.close()
            raise
        self.leases.append(held)
        if len(self.leases) > LEASES_MAX:
            size += self.detach()
        return size

    def load(self):
        """What comes is what the file has that is passed."""
        path = self.path()
        form, name = self.form_and_name(path)
        self.recent = [*self.recent[-5:], (path, form, name)]
        parameters = {"form": form, "name": name, "deadline": self.deadline(), "dequant": self.rng.choice(["auto", "cpu"])}
        if self.rng.random() < 0.3:
            parameters["replace"] = True
        if self.rng.random() < 0.3:
            parameters["waitForMemory"] = self.rng.random()
        with open(path, "rb") as file:
            version = self.version_in(path, file)
            if self.rng.random() < 0.4:
                wait = self.rng.random() < 0.5
                self.client.call("Load", fds=[file.fileno()], wait=wait, **parameters)
                return 0
            reply = self.client.call("Load", fds=[file.fileno()], lease=True, **parameters)
        return self.keep(reply, name, [version])

    def version_in(self, path, file):
        found = digest(file.read())
        return next(version for version in self.versions[path] if version.digest == found)

    def attach(self):
        path, form, name = self.some_model()
        reply = self.client.call("Attach", name=name, deadline=self.deadline())
        if reply["model"]["form"] != form:
            raise Wrong(f"{name} has the form {reply['model']['form']}")
        return self.keep(reply, name, self.versions[path])

    def detach(self):
        if not self.leases:
            return None
        held = self.leases.pop(self.rng.randrange(len(self.leases)))
        try:
            size = held.check([])
            self.client.call("Detach", lease=held.lease)
        finally:
            held.memory.close()
        return size

    def look_again(self):
        return self.rng.choice(self.leases).check([]) if self.leases else None

    def some_name(self):
        return self.some_model()[2]

    def unload(self, force=False):
        self.client.call("Unload", name=self.some_name(), force=force, deadline=self.deadline())
        return 0

    def force(self):
        return self.unload(True)

    def pin(self):
        name = self.some_name()
        self.client.call("Pin", name=name)
        self.client.call("Unpin", name=name)
        return 0

    def ttl(self):
        self.client.call("SetTtl", name=self.some_name(), ttl=self.rng.choice([None, 0, 1]))
        return 0

    def cancel(self):
        self.client.call("Cancel", name=self.some_name(), deadline=self.deadline())
        return 0

    def verify(self):
        reply = self.client.call("Verify", name=self.some_name(), deadline=self.deadline())
        if reply["mismatches"]:
            raise Wrong(f"Verify: {reply}")
        return 0

    def plan(self):
        path = self.path()
        form, name = self.form_and_name(path)
        with open(path, "rb") as file:
            self.client.call("Plan", fds=[file.fileno()], form=form, name=name)
        return 0

    def list(self):
        self.client.call("List")
        return 0

    def show(self):
        self.client.call("Show", name=self.some_name())
        return 0

    def watch(self):
        with contextlib.closing(Client(self.socket, timeout=60)) as watcher:
            watcher.send("Watch", more=True)
            for _ in range(self.rng.randrange(1, 4)):
                watcher.socket.settimeout(60 if watcher.count == 0 else 0.1)
                try:
                    watcher.reply()
                except TimeoutError:
                    break
        return 0

    def send_load(self):
        path = self.path()
        form, name = self.form_and_name(path)
        with open(path, "rb") as file:
            self.client.send("Load", {"fds": [0], "form": form, "name": name}, [file.fileno()])
        time.sleep(self.rng.random() * 0.01)

    def leave(self):
        """Closes the connection in the middle of a load."""
        self.send_load()
        self.close()
        return 0

    def die(self):
        if self.rng.random() < 0.2:
            self.send_load()
            self.tell("die", "")
            os._exit(DIED_BY_ITSELF)
