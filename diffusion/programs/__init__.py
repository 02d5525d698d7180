"""The programs, one file each. A program of `main --mode=NAME` defines five names that main reads:

    __doc__                              its first line describes the mode in --help
    INSTEAD                              flag -> its replacement in the modes that do not read it
    declare_flags(values)                declares the program's flags
    prepare_process(values)              before JAX is imported: refuses flags that do not go together
    run_program(config, workdir, values) runs it; `values` has the value of each flag by its name

They import JAX, and modules that import it, only where they use it, so that --help and wrong flags need no JAX.
convert.py and metrics.py are separate commands, `python -m diffusion.interop.convert` and `python -m
diffusion.metrics`. train.py and evaluate.py share evaluation.py; edit.py has the tasks of sample.py.
"""
