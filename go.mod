module bhive

go 1.27
