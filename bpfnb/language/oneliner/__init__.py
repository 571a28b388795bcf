"""One-liners: a question about probes, in Python's expressions -> C. Text to text; the kernel is not asked here.

expressions   "fd > 2 and comm == 'nginx'" -> a tree
question      what is asked: probes, value, by, where, columns
values        what an expression's value is: integers with their range, strings
names         the names there are at a probe, and the C that has their values
translate     a tree and names -> C, with types checked
sites         the kinds of probe: how a program gets arguments and return value
generate      a question and signatures -> a whole program
"""
