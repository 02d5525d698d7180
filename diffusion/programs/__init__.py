"""The programs, one file each. Those of `main --mode=NAME` have five names that main reads:

    __doc__                              its first line is what --help says of the mode
    INSTEAD                              flag -> what does its work in the modes that do not read it
    declare_flags(values)                declares the program's flags
    prepare_process(values)              before JAX is imported: refuses flags that do not go together
    run_program(config, workdir, values) runs it; `values` has the value of each flag by its name

They import JAX and whatever imports it where they use it, so that --help and a wrong flag are answered at once.
convert.py and metrics.py are commands of their own, `python -m diffusion.interop.convert` and `python -m
diffusion.metrics`. evaluation.py is what train.py and evaluate.py share, edit.py the tasks of sample.py.
"""
