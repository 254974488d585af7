package tokenizer

import "golang.org/x/text/unicode/norm"

func normForm(i int) norm.Form { return []norm.Form{norm.NFC, norm.NFD, norm.NFKC, norm.NFKD}[i] }
