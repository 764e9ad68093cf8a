"""What is true of this machine, this volume and this ComfyUI right now, gathered once.

The modules in this room are the only probers; checks read what they return and ask nothing
themselves. Nothing is remembered: a worker can be frozen and thawed on another day, so whoever
wants to know asks afresh.
"""
