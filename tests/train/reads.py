"""Which settings the code of `train/` reads, found in its sources by the types that its annotations give.

A field of a settings class counts as read where some code loads the attribute from an expression that can be an object
of that class: a parameter or variable annotated with the class or a base of it, a field of that type
(`config.optimizer.ema`), the result of a function annotated so, or `self` in a method that the class has and that is
called on it. Range checks (`check`) do not count, nor does what treats all fields alike, such as `to_json`.
"""

import ast
import collections
import dataclasses
import pathlib

import train
from train.settings import Registered

NOTHING = frozenset()


class Sources:
    """The classes and functions of Python files, by name, and the loads of attributes, with the classes they can be of.

    Types are frozensets of names of classes, or lists of such for tuples. `commands` are the classes whose fields are
    flags. `more` are files beside those of `train/`.
    """

    def __init__(self, *more):
        paths = [*pathlib.Path(train.__file__).parent.rglob("*.py"), *map(pathlib.Path, more)]
        trees = [ast.parse(path.read_text()) for path in paths]
        self.classes = {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        self.functions = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
        calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
        self.commands = {last_name(call.args[0]) for call in calls if ast.unparse(call.func) == "tyro.cli"}
        self.attributes = collections.defaultdict(lambda: NOTHING)  # types of what methods assign to self, by class
        for _ in range(2):  # the second round knows those attributes
            loads = {load for tree in trees for load in self.loads(tree.body, {}, "")}
        self.reads = {(name, attribute) for name, attribute, on_self in loads if not on_self}

    def unread(self, cls):
        """The fields of a dataclass that nothing reads, in order."""
        line = [base.__name__ for base in cls.__mro__ if base.__name__ in self.classes]
        read = {attribute for name, attribute in self.reads if name in line}
        families = [base for base in cls.__mro__ if Registered in base.__bases__]
        called = [(name, 0) for name in {*read, *(name for family in families for name in vars(family))} - {"check"}]
        seen = set()
        while called:  # methods that are called on the class, each with the first class of `line` that may define it
            name, start = called.pop()
            place = next((i for i in range(start, len(line)) if name in self.methods(line[i])), None)
            if place is None or (name, place) in seen:
                continue
            seen.add((name, place))
            method = self.methods(line[place])[name]
            loads = {attribute for _, attribute, on_self in self.function(method, {}, line[0]) if on_self}
            read |= loads
            called += [(more, 0) for more in loads] + [(more, place + 1) for more in super_calls(method)]
        return [field.name for field in dataclasses.fields(cls) if field.name not in read]

    def loads(self, body, names, owner):
        """Yields (class, attribute, whether from self) of all that statements load, in methods of the class `owner`;
        `names` are the types of variables."""
        nodes = [node for statement in body for node in scope(statement)]
        for _ in range(3):  # a variable may be assigned from one that a later line assigns
            for node in nodes:
                self.assign(node, names, owner)
        for node in nodes:
            value, attribute = loaded(node)
            if value is not None:
                on_self = isinstance(value, ast.Name) and value.id == "self"
                yield from ((name, attribute, on_self) for name in self.types(value, names))
            elif isinstance(node, ast.FunctionDef) and not (owner and node.name == "check"):
                yield from self.function(node, names, owner)
            elif isinstance(node, ast.ClassDef):
                yield from self.loads(node.body, dict(names), node.name)

    def function(self, node, names, owner):
        """The loads of a function; of a method, with a `self` of the class `owner`."""
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        inner = {**names, **{argument.arg: self.annotated(argument.annotation) for argument in arguments}}
        if arguments and arguments[0].arg == "self":
            inner["self"] = frozenset([owner])
        return self.loads(node.body, inner, owner)

    def types(self, node, names):
        """The type of an expression; nothing where it is a tuple's or unknown."""
        found = NOTHING
        if isinstance(node, ast.Name):
            found = names.get(node.id, NOTHING)
        elif isinstance(node, ast.Attribute):
            found = union(self.member(name, node.attr) for name in self.types(node.value, names))
        elif isinstance(node, ast.Subscript):  # an element of what is annotated with its type
            found = self.types(node.value, names)
        elif isinstance(node, ast.IfExp):
            found = union([self.types(node.body, names), self.types(node.orelse, names)])
        elif isinstance(node, ast.BoolOp):
            found = union(self.types(value, names) for value in node.values)
        elif isinstance(node, ast.Call):
            found = self.result(node, names)
        return NOTHING if isinstance(found, list) else found

    def result(self, call, names):
        """The type of a call's result."""
        function = last_name(call.func)
        if function in self.classes:
            return frozenset([function])
        if ast.unparse(call.func) == "dataclasses.replace":
            return self.types(call.args[0], names)
        if ast.unparse(call.func) == "tyro.cli":
            return frozenset([last_name(call.args[0])])
        if found := self.types(call.func, names):  # a method, annotated with its result
            return found
        return self.annotated(self.functions[function].returns) if function in self.functions else NOTHING

    def member(self, name, attribute):
        """The type of an object's attribute, or of the result of its method."""
        for base in self.bases(name):
            for node in self.classes[base].body:
                if isinstance(node, ast.AnnAssign) and last_name(node.target) == attribute:
                    return self.annotated(node.annotation)
                if isinstance(node, ast.FunctionDef) and node.name == attribute:
                    return self.annotated(node.returns)
            if (base, attribute) in self.attributes:
                return self.attributes[base, attribute]
        return NOTHING

    def annotated(self, node):
        """The type that an annotation names."""
        if node is None:
            return NOTHING
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.Subscript) and last_name(node.value) == "tuple" and isinstance(node.slice, ast.Tuple):
            return [self.annotated(part) for part in node.slice.elts]
        return frozenset(map(last_name, ast.walk(node))) & frozenset(self.classes)

    def assign(self, node, names, owner):
        """Notes the types of what a statement assigns."""
        pairs = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.NamedExpr):
            pairs = [(node.target, node.value)]
        elif isinstance(node, ast.With):
            pairs = [(item.optional_vars, item.context_expr) for item in node.items]
        elif isinstance(node, ast.AnnAssign):
            self.note(node.target, self.annotated(node.annotation), names, owner)
        for target, value in pairs:
            parts = [(target, self.types(value, names))]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                parts = [(one, self.types(part, names)) for one, part in zip(target.elts, value.elts, strict=True)]
            elif isinstance(target, ast.Tuple) and isinstance(value, ast.Call):
                found = self.result(value, names)
                parts = list(zip(target.elts, found, strict=False)) if isinstance(found, list) else []
            for one, found in parts:
                self.note(one, found, names, owner)

    def note(self, target, found, names, owner):
        if isinstance(target, ast.Name):
            names[target.id] = union([names.get(target.id, NOTHING), found])
        elif isinstance(target, ast.Attribute) and owner and last_name(target.value) == "self":
            self.attributes[owner, target.attr] = union([self.attributes[owner, target.attr], found])

    def methods(self, name):
        return {node.name: node for node in self.classes[name].body if isinstance(node, ast.FunctionDef)}

    def bases(self, name):
        """The class and its bases among these sources."""
        if name not in self.classes:
            return []
        return [name, *(base for direct in self.classes[name].bases for base in self.bases(last_name(direct)))]


def scope(node):
    """A statement and all in it but the bodies of functions and classes."""
    yield node
    if not isinstance(node, ast.FunctionDef | ast.ClassDef):
        for child in ast.iter_child_nodes(node):
            yield from scope(child)


def loaded(node):
    """The expression and the attribute that a node loads from it, also by `getattr`; or None and nothing."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        return node.value, node.attr
    if isinstance(node, ast.Call) and last_name(node.func) == "getattr" and isinstance(node.args[1], ast.Constant):
        return node.args[0], node.args[1].value
    return None, ""


def last_name(node):
    """`c` of a.b.c, nothing of what is no name."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def super_calls(method):
    """The methods that a method calls on its bases."""
    nodes = [node for node in ast.walk(method) if isinstance(node, ast.Attribute)]
    return [node.attr for node in nodes if ast.unparse(node.value) == "super()"]


def union(types):
    return frozenset().union(*(one for one in types if not isinstance(one, list)))
