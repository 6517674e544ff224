"""Makes the one object file of all compiled functions (``compiled.py``).

numba infers the types and writes the code of every function; LLVM optimises all of it once and in one piece. Left to
itself, numba optimises and assembles what a function calls again with each caller: three times the work in all.
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import from_dtype, njit, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, PassManager
from numba.core.registry import cpu_target
from numba.core.typed_passes import NativeLowering, NoPythonBackend, NopythonTypeInference, PreLowerStripPhis
from numba.core.typing.templates import AttributeTemplate
from numba.core.untyped_passes import FixupArgs, GenericRewrites, IRProcessing, ReconstructSSA, TranslateByteCode
from numba.extending import infer_getattr, intrinsic, lower_getattr_generic, models, register_jitable, register_model
from numba.np.arrayobj import populate_array

from dynosim.simulation.compiled import PYTHON_API, Opener, State, entries, inner_functions, shared_functions, symbol

WORD, REAL = ir.IntType(64), ir.DoubleType()
POINTER = ir.IntType(8).as_pointer()
VIEW = ir.ArrayType(WORD, 16)
"""Room for a ``Py_buffer``, of which these words are read (the number of dimensions is the upper half of its own):"""
ADDRESS, ITEMSIZE, DIMENSIONS, SHAPE = 0, 3, 4, 6
WITH_SHAPE = 0x8
"""``PyBUF_ND``: with the lengths of all dimensions, and C-contiguous."""
TYPES = {
    "Handle": types.Array(types.int64, 2, "C"),
    "Handles": types.Array(types.int64, 3, "C"),
    "Ints": types.Array(types.int64, 1, "C"),
    "Floats": types.Array(types.float64, 1, "C"),
    "int": types.int64,
    "float": types.float64,
}
"""Annotation of an entry's parameter -> type; arrays are C-contiguous. Entries return None, or whole numbers."""
MATHS = {"exp", "log", "pow", "sqrt", "ceil", "floor", "fmod", "memset", "memcpy"}
"""Functions of C that compiled code may call."""


class _Pipeline(CompilerBase):
    """numba's passes less those that rewrite what compiled code does not use, such as closures and generators: a fifth
    of the time."""

    def define_pipelines(self):
        passes = PassManager("plain")
        for step in (
            TranslateByteCode, FixupArgs, IRProcessing, GenericRewrites, ReconstructSSA, NopythonTypeInference,
            PreLowerStripPhis, NativeLowering, NoPythonBackend,
        ):  # fmt: skip
            passes.add_pass(step, step.__name__)
        passes.finalize()
        return [passes]


COMPILED = {
    "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "error_model": "numpy", "_nrt": False,
    "pipeline_class": _Pipeline,
}  # fmt: skip
"""Nothing in compiled code raises, or owns memory."""


def object_code() -> bytes:
    """Compile all entries, and what they call; returns the object file."""
    to_numba()
    with _pieces():
        libraries = [_compile_entry(function) for function in entries]
    target = cpu_target.target_context.codegen()
    module = binding.parse_assembly(str(target._create_empty_module("dynosim")))
    for library in _with_callees(libraries):
        # What the process has run before, as numba made it, is no piece.
        part = library._final_module if isinstance(library, _Piece) else library._get_module_for_linking()
        module.link_in(part, preserve=True)
    exported = set(map(symbol, entries))
    for function in module.functions:
        if not function.is_declaration and function.name not in exported:
            function.linkage = "internal"
    passes = target._pass_builder(opt=3, loop_vectorize=False, slp_vectorize=False)
    passes.getModulePassManager().run(module, passes)
    _check(module)
    return bytes(target._tm.emit_object(module))


def _with_callees(libraries: list[Any]) -> list[Any]:
    """Return *libraries* and those of all functions that they call, each once."""
    found = dict.fromkeys(libraries)
    ahead = list(libraries)
    while ahead:
        new = [library for library in dict.fromkeys(ahead.pop()._linking_libraries) if library not in found]
        found |= dict.fromkeys(new)
        ahead += new
    return list(found)


def _check(module: binding.ModuleRef) -> None:
    """What the code needs is there wherever it is read: no part of numba's own runtime."""
    needed = {function.name for function in module.functions if function.is_declaration}
    unknown = {name for name in needed if not name.startswith("llvm.")} - MATHS - {*PYTHON_API}
    if unknown:
        raise RuntimeError(f"compiled code calls {', '.join(sorted(unknown))}")


def to_numba() -> None:
    """Put numba's functions and types in the place of declarations, in all modules that name them."""
    made = {function: _dispatcher(function) for function in inner_functions}
    for function in shared_functions:
        _register(function)
    for module in [module for name, module in sys.modules.items() if name.startswith(__package__ or "")]:
        for name, value in list(vars(module).items()):
            if isinstance(value, Opener):
                setattr(module, name, _opener(value.state))
            elif inspect.isfunction(value) and value in made:
                setattr(module, name, made[value])


@cache
def _register(function: Callable[..., Any]) -> None:
    register_jitable(**COMPILED)(function)


@cache
def _dispatcher(function: Callable[..., Any]) -> Any:
    """Compile a function once: whole numbers of any kind come as 64 bits."""
    dispatcher = njit(**COMPILED)(function)
    template = dispatcher.get_call_template
    dispatcher.get_call_template = lambda args, kws: template(tuple(map(_widest, args)), kws)
    return dispatcher


def _widest(kind: types.Type) -> types.Type:
    kind = types.unliteral(kind)
    return types.int64 if kind in (types.int8, types.int32) else kind


# ------------------------------------------------------------------------------------------------------------- pieces


class _Piece(JITCodeLibrary):
    """The code of one function as numba wrote it, neither linked nor optimised."""

    def _optimize_functions(self, ll_module):
        ll_module.data_layout = self._codegen._data_layout

    def finalize(self):
        self._finalized = True

    def get_pointer_to_function(self, name):
        return 0

    def _get_module_for_linking(self):
        """Whoever else uses the function, such as another package's compiled code, needs what it calls too."""
        if self._shared_module is None:
            for library in dict.fromkeys(self._linking_libraries):
                self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        return super()._get_module_for_linking()


@contextmanager
def _pieces() -> Iterator[None]:
    """Let numba write pieces; it knows where code of its own ends only by the class of its libraries."""
    codegen = cpu_target.target_context.codegen()
    codegen._library_class, codegen.set_env = _Piece, lambda name, environment: None
    collects = gc.isenabled()
    gc.disable()  # a tenth of the time, and next to nothing to collect
    try:
        yield
    finally:
        del codegen._library_class, codegen.set_env
        if collects:
            gc.enable()


# ------------------------------------------------------------------------------------------------------------ entries


def _compile_entry(function: Callable[..., Any]) -> _Piece:
    """Compile an entry; returns a function of Python's calling convention around it (METH_FASTCALL)."""
    context = cpu_target.target_context
    kinds = _kinds(function)
    dispatcher = njit(**COMPILED)(function)
    dispatcher.compile(tuple(kinds))
    compiled = dispatcher.overloads[tuple(kinds)]
    library = context.codegen().create_library(symbol(function))
    module = library.create_ir_module(symbol(function))
    wrapper = ir.Function(module, ir.FunctionType(POINTER, [POINTER, POINTER.as_pointer(), WORD]), symbol(function))
    builder = ir.IRBuilder(wrapper.append_basic_block())
    _refuse(builder, builder.icmp_signed("!=", wrapper.args[2], WORD(len(kinds))), bad=True)
    views: list[Any] = []
    values = []
    for i, kind in enumerate(kinds):
        given = builder.load(builder.gep(wrapper.args[1], [WORD(i)]))
        values.append(_unpacked(context, builder, kind, given, views))
    _refuse(builder, builder.icmp_signed("!=", _call(builder, "PyErr_Occurred", POINTER), POINTER(None)))
    callee_type = context.call_conv.get_function_type(compiled.fndesc.restype, compiled.fndesc.argtypes)
    callee = ir.Function(module, callee_type, compiled.fndesc.llvm_func_name)
    _, out = context.call_conv.call_function(builder, callee, compiled.fndesc.restype, kinds, values)
    for view in views:
        _call(builder, "PyBuffer_Release", ir.VoidType(), view)
    builder.ret(_returned(builder, compiled.fndesc.restype, out))
    library.add_ir_module(module)
    library.add_linking_library(compiled.library)
    return library


def _kinds(function: Callable[..., Any]) -> list[types.Type]:
    found = []
    for name in inspect.signature(function).parameters:
        annotation = function.__annotations__.get(name)
        if annotation not in TYPES:
            raise TypeError(f"{function.__name__}({name}: {annotation}): allowed: {', '.join(TYPES)}")
        found.append(TYPES[annotation])
    return found


def _refuse(builder: Any, condition: Any, *, bad: bool = False) -> None:
    """Return with the error that is set, or with one that says what was given is bad."""
    with builder.if_then(condition, likely=False):
        if bad:
            _call(builder, "PyErr_BadArgument", ir.IntType(32))
        builder.ret(POINTER(None))


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [arg.type for arg in args]), name)
    return builder.call(function, args)


def _unpacked(context: Any, builder: Any, kind: types.Type, given: Any, views: list[Any]) -> Any:
    """Return the value of type *kind* of the Python object *given*; buffers of arrays are added to *views*."""
    if kind == types.int64:
        return _call(builder, "PyLong_AsLongLong", WORD, given)
    if kind == types.float64:
        return _call(builder, "PyFloat_AsDouble", REAL, given)
    view = builder.alloca(VIEW)
    views.append(builder.bitcast(view, POINTER))
    failed = _call(builder, "PyObject_GetBuffer", ir.IntType(32), given, views[-1], ir.IntType(32)(WITH_SHAPE))
    _refuse(builder, builder.icmp_signed("!=", failed, ir.IntType(32)(0)))
    address, itemsize, lengths = (_word(builder, view, word) for word in (ADDRESS, ITEMSIZE, SHAPE))
    dimensions = builder.ashr(_word(builder, view, DIMENSIONS), WORD(32))
    known = builder.and_(
        builder.icmp_signed("==", itemsize, WORD(8)), builder.icmp_signed("==", dimensions, WORD(kind.ndim))
    )
    _refuse(builder, builder.not_(known), bad=True)
    return _array(context, builder, kind, address, builder.inttoptr(lengths, WORD.as_pointer()))


def _word(builder: Any, view: Any, number: int) -> Any:
    return builder.load(builder.gep(view, [WORD(0), WORD(number)]))


def _array(context: Any, builder: Any, kind: types.Array, address: Any, lengths: Any) -> Any:
    """Return numba's array of 8-byte items at *address* with the *lengths* of its dimensions, C-contiguous."""
    shape = [builder.load(builder.gep(lengths, [WORD(i)])) for i in range(kind.ndim)]
    strides = [WORD(8)]
    for length in shape[:0:-1]:
        strides.insert(0, builder.mul(length, strides[0]))
    return _populated(context, builder, kind, address, shape, strides)


def _populated(context: Any, builder: Any, kind: types.Array, address: Any, shape: Any, strides: Any) -> Any:
    array = context.make_array(kind)(context, builder)
    data = builder.inttoptr(address, array.data.type)
    populate_array(array, data=data, shape=shape, strides=strides, itemsize=strides[-1], meminfo=None)
    return array._getvalue()


def _returned(builder: Any, kind: types.Type, out: Any) -> Any:
    """Return *out*, nothing or one or several whole numbers, as a Python object."""
    values = [] if kind == types.none else [out]
    if isinstance(kind, types.UniTuple):
        values = [builder.extract_value(out, i) for i in range(kind.count)]
    text = bytearray("L" * len(values) + "\0", "ascii")
    constant = ir.GlobalVariable(builder.module, ir.ArrayType(ir.IntType(8), len(text)), f"format.{len(values)}")
    constant.initializer, constant.linkage = ir.Constant(constant.type.pointee, text), "private"
    build = ir.Function(builder.module, ir.FunctionType(POINTER, [POINTER], var_arg=True), "Py_BuildValue")
    return builder.call(build, [builder.bitcast(constant, POINTER), *values])


# -------------------------------------------------------------------------------------------------------------- state


class _StateType(types.Type):
    def __init__(self, state: State) -> None:
        super().__init__(state.name)
        self.arrays = {
            field: (row, types.Array(from_dtype(dtype), ndim, "C"), np.dtype(dtype).itemsize)
            for row, (field, (dtype, ndim)) in enumerate(state.fields.items())
        }


@register_model(_StateType)
class _StateModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, WORD)


@infer_getattr
class _StateAttributes(AttributeTemplate):
    key = _StateType

    def generic_resolve(self, state, name):
        return state.arrays[name][1] if name in state.arrays else None


@lower_getattr_generic(_StateType)
def _lower_attribute(context, builder, state, address, name):
    """Build the array from its row of the handle."""
    row, kind, size = state.arrays[name]
    table = builder.inttoptr(address, WORD.as_pointer())
    data, length, width = (builder.load(builder.gep(table, [WORD(3 * row + i)])) for i in range(3))
    one = WORD(size)
    shape, strides = [length], [one]
    if kind.ndim == 2:
        shape, strides = [length, width], [builder.mul(width, one), one]
    return _populated(context, builder, kind, data, shape, strides)


@cache
def _opener(state: State) -> Any:
    kind = _StateType(state)

    @intrinsic
    def open_state(typing_context, handle):
        def codegen(context, builder, signature, args):
            array = context.make_array(signature.args[0])(context, builder, args[0])
            return builder.ptrtoint(array.data, WORD)

        return kind(handle), codegen

    return open_state
