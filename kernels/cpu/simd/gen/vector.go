package main

func vectors(o *out, v isa) {}
