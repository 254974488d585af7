package simd

import (
	"math"
	"testing"
)

func TestDotNT(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		for _, s := range shapes() {
			r := newRand(s.m, s.n, s.k)
			ldx := s.k + 3
			x := normal(r, (s.m-1)*ldx+s.k)
			w := newWeights(r, s.n, s.k, s.k+5)
			for _, f := range w.formats(k) {
				y := newGuarded(s.m, s.n+2, s.n)
				f.nt(y.data(), y.ld, x, ldx, s.m, s.n, s.k)
				y.check(t)
				for i := range s.m {
					for j := range s.n {
						var want, size float64
						for c := range s.k {
							p := float64(x[i*ldx+c]) * float64(f.exact[j*w.ld+c])
							want, size = want+p, size+math.Abs(p)
						}
						near(t, f.name+" "+s.String(), y.row(i)[j], want, size, 3e-6)
					}
				}
			}
		}
	})
}

func TestDotNN(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		for _, s := range shapes() {
			r := newRand(s.m, s.n, s.k)
			lddy := s.n + 3
			dy := normal(r, (s.m-1)*lddy+s.n)
			w := newWeights(r, s.n, s.k, s.k+5)
			for _, f := range w.formats(k) {
				for _, accumulate := range []bool{false, true} {
					dx := newGuarded(s.m, s.k+2, s.k)
					old := append([]float32(nil), dx.data()...)
					f.nn(dx.data(), dx.ld, dy, lddy, s.m, s.n, s.k, accumulate)
					dx.check(t)
					for i := range s.m {
						for c := range s.k {
							var want, size float64
							if accumulate {
								want = float64(old[i*dx.ld+c])
								size = math.Abs(want)
							}
							for j := range s.n {
								p := float64(dy[i*lddy+j]) * float64(f.exact[j*w.ld+c])
								want, size = want+p, size+math.Abs(p)
							}
							near(t, f.name+" "+s.String(), dx.row(i)[c], want, size, 5e-6)
						}
					}
				}
			}
		}
	})
}

func TestDotTN(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		for _, s := range shapes() { // k is the rank
			r := newRand(s.m, s.n, s.k)
			lddy, ldz := s.n+1, s.k+2
			dy, z := normal(r, (s.m-1)*lddy+s.n), normal(r, (s.m-1)*ldz+s.k)
			db := newGuarded(s.n, s.k+3, s.k)
			old := append([]float32(nil), db.data()...)
			k.DotTN(db.data(), db.ld, dy, lddy, z, ldz, s.m, s.n, s.k)
			db.check(t)
			for j := range s.n {
				for c := range s.k {
					want := float64(old[j*db.ld+c])
					size := math.Abs(want)
					for i := range s.m {
						p := float64(dy[i*lddy+j]) * float64(z[i*ldz+c])
						want, size = want+p, size+math.Abs(p)
					}
					near(t, s.String(), db.row(j)[c], want, size, 5e-6)
				}
			}
		}
	})
}

// TestExpandNT holds the expand to what its package comment says it is: DotNT, then Add, bit for bit.
func TestExpandNT(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		for _, m := range []int{1, 2, 5, 8, 33} {
			for _, n := range []int{1, 7, 16, 33, 133} {
				for _, rank := range []int{1, 3, 4, 8, 15, 16, 17, 32, 33, 48, 64} {
					r := newRand(m, n, rank)
					ldz := rank + 2
					z := normal(r, (m-1)*ldz+rank)
					b := newWeights(r, n, rank, rank+1)
					for _, f := range b.formats(k)[:2] {
						want := newGuarded(m, n+2, n)
						dot := make([]float32, m*n)
						f.nt(dot, n, z, ldz, m, n, rank)
						for i := range m {
							k.Add(want.row(i), dot[i*n:][:n])
						}
						y := newGuarded(m, n+2, n)
						if f.name == "f32" {
							k.ExpandNTF32(y.data(), y.ld, z, ldz, b.f32, b.ld, m, n, rank)
						} else {
							k.ExpandNTBF16(y.data(), y.ld, z, ldz, b.bf16, b.ld, m, n, rank)
						}
						y.check(t)
						sameBits(t, f.name+" "+shape{m, n, rank}.String(), y.all, want.all)
					}
				}
			}
		}
	})
}

// TestBatchInvariance: a row has the same bits alone, in any batch, and with its columns split over calls.
func TestBatchInvariance(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		for _, s := range []shape{{7, 37, 64}, {33, 37, 133}, {133, 19, 96}, {133, 50, 33}} {
			r := newRand(s.m, s.n, s.k)
			x, dy := normal(r, s.m*s.k), normal(r, s.m*s.n)
			w := newWeights(r, s.n, s.k, s.k)
			for _, f := range w.formats(k) {
				y, dx := make([]float32, s.m*s.n), make([]float32, s.m*s.k)
				f.nt(y, s.n, x, s.k, s.m, s.n, s.k)
				f.nn(dx, s.k, dy, s.n, s.m, s.n, s.k, false)
				y1, dx1 := make([]float32, s.n), make([]float32, s.k)
				for i := range s.m {
					f.nt(y1, s.n, x[i*s.k:], s.k, 1, s.n, s.k)
					sameBits(t, f.name+" nt", y1, y[i*s.n:][:s.n])
					f.nn(dx1, s.k, dy[i*s.n:], s.n, 1, s.n, s.k, false)
					sameBits(t, f.name+" nn", dx1, dx[i*s.k:][:s.k])
				}
				for at := 1; at < s.m; at += 1 + at {
					part := make([]float32, (s.m-at)*s.n)
					f.nt(part, s.n, x[at*s.k:], s.k, s.m-at, s.n, s.k)
					sameBits(t, f.name+" nt rows from", part, y[at*s.n:])
				}
			}
			cut := 2*s.n/3 + 1
			whole, split := make([]float32, s.m*s.n), make([]float32, s.m*s.n)
			k.DotNTBF16(whole, s.n, x, s.k, w.bf16, s.k, s.m, s.n, s.k)
			k.DotNTBF16(split, s.n, x, s.k, w.bf16, s.k, s.m, cut, s.k)
			k.DotNTBF16(split[cut:], s.n, x, s.k, w.bf16[cut*s.k:], s.k, s.m, s.n-cut, s.k)
			sameBits(t, "split columns", split, whole)

			// DotTN: rows of db split over calls, and a batch continued by a second call.
			whole, split = make([]float32, s.n*s.k), make([]float32, s.n*s.k)
			k.DotTN(whole, s.k, dy, s.n, x, s.k, s.m, s.n, s.k)
			h := s.m / 2
			for _, c := range [][2]int{{0, cut}, {cut, s.n}} {
				k.DotTN(split[c[0]*s.k:], s.k, dy[c[0]:], s.n, x, s.k, h, c[1]-c[0], s.k)
				k.DotTN(split[c[0]*s.k:], s.k, dy[h*s.n+c[0]:], s.n, x[h*s.k:], s.k, s.m-h, c[1]-c[0], s.k)
			}
			sameBits(t, "split tn", split, whole)
		}
	})
}

// TestWidenedWeights: narrow weights give the bits of the float32 weights that they stand for.
func TestWidenedWeights(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		s := shape{9, 41, 144}
		r := newRand(1)
		x, dy := normal(r, s.m*s.k), normal(r, s.m*s.n)
		w := newWeights(r, s.n, s.k, s.k)
		for _, f := range w.formats(k)[1:] {
			got, want := make([]float32, s.m*s.n), make([]float32, s.m*s.n)
			f.nt(got, s.n, x, s.k, s.m, s.n, s.k)
			k.DotNTF32(want, s.n, x, s.k, f.exact, s.k, s.m, s.n, s.k)
			sameBits(t, f.name+" nt", got, want)
			got, want = make([]float32, s.m*s.k), make([]float32, s.m*s.k)
			f.nn(got, s.k, dy, s.n, s.m, s.n, s.k, false)
			k.DotNNF32(want, s.k, dy, s.n, f.exact, s.k, s.m, s.n, s.k, false)
			sameBits(t, f.name+" nn", got, want)
		}
	})
}

func TestAttention(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		for _, d := range []int{16, 40, 64, 128} {
			for _, n := range []int{1, 5, 16, 33, 64} {
				const g, scale = 5, 0.125
				r := newRand(d, n)
				q, p := normal(r, g*d), normal(r, g*n)
				kv := newWeights(r, n, d, d+16)
				for _, f := range kv.formats(k)[:2] {
					scores, o := newGuarded(g, n+1, n), newGuarded(g, d+2, d)
					old := append([]float32(nil), o.data()...)
					one, oneO := make([]float32, n), make([]float32, d)
					run := func(scores []float32, q, p, o []float32, g int) {
						if f.name == "f32" {
							k.AttnScoresF32(scores, n+1, q, d, kv.f32, kv.ld, g, n, d, scale)
							k.AttnCombineF32(o, d+2, p, n, kv.f32, kv.ld, g, n, d)
						} else {
							k.AttnScoresBF16(scores, n+1, q, d, kv.bf16, kv.ld, g, n, d, scale)
							k.AttnCombineBF16(o, d+2, p, n, kv.bf16, kv.ld, g, n, d)
						}
					}
					run(scores.data(), q, p, o.data(), g)
					scores.check(t)
					o.check(t)
					for i := range g {
						copy(oneO, old[i*o.ld:][:d])
						run(one, q[i*d:], p[i*n:], oneO, 1)
						sameBits(t, "scores", one, scores.row(i))
						sameBits(t, "combine", oneO, o.row(i))
						for j := range n {
							var want, size float64
							for c := range d {
								v := float64(q[i*d+c]) * float64(f.exact[j*kv.ld+c]) * scale
								want, size = want+v, size+math.Abs(v)
							}
							near(t, "score", one[j], want, size, 3e-6)
						}
						for c := range d {
							want := float64(old[i*o.ld+c])
							size := math.Abs(want)
							for j := range n {
								v := float64(p[i*n+j]) * float64(f.exact[j*kv.ld+c])
								want, size = want+v, size+math.Abs(v)
							}
							near(t, "combine", oneO[c], want, size, 3e-6)
						}
					}
				}
			}
		}
	})
}

// TestImplementationsAgree: the assembly implementations give the same bits.
func TestImplementationsAgree(t *testing.T) {
	all := Implementations()[1:]
	if len(all) < 2 {
		t.Skip("this machine runs fewer than two assembly implementations")
	}
	for _, s := range shapes() {
		r := newRand(s.m, s.n, s.k)
		x, dy := normal(r, s.m*s.k), normal(r, s.m*s.n)
		w := newWeights(r, s.n, s.k, s.k)
		var first [][]float32
		for at, k := range all {
			var out [][]float32
			for _, f := range w.formats(k) {
				y, dx := make([]float32, s.m*s.n), make([]float32, s.m*s.k)
				f.nt(y, s.n, x, s.k, s.m, s.n, s.k)
				f.nn(dx, s.k, dy, s.n, s.m, s.n, s.k, true)
				out = append(out, y, dx)
			}
			db := make([]float32, s.n*s.k)
			k.DotTN(db, s.k, dy, s.n, x, s.k, s.m, s.n, s.k)
			out = append(out, db)
			if at == 0 {
				first = out
				continue
			}
			for i := range out {
				sameBits(t, k.Name+" "+s.String(), out[i], first[i])
			}
		}
	}
}

func TestEmptyAndWrongShapes(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		y := []float32{5, 5}
		k.DotNTF32(nil, 0, nil, 0, nil, 0, 0, 0, 0)
		k.DotNTF32(y, 2, nil, 0, nil, 0, 1, 2, 0)
		sameBits(t, "k = 0 gives zeros", y, []float32{0, 0})
		k.DotNNF32(y, 2, nil, 0, nil, 0, 1, 0, 2, true)
		y[1] = 3
		k.DotNNF32(y, 2, nil, 0, nil, 0, 1, 0, 2, false)
		sameBits(t, "n = 0 gives zeros", y, []float32{0, 0})
		for name, call := range map[string]func(){
			"short w":  func() { k.DotNTF32(make([]float32, 4), 2, make([]float32, 8), 4, make([]float32, 7), 4, 2, 2, 4) },
			"short y":  func() { k.DotNTF32(make([]float32, 3), 2, make([]float32, 8), 4, make([]float32, 8), 4, 2, 2, 4) },
			"small ld": func() { k.DotNNF32(make([]float32, 8), 3, make([]float32, 8), 4, make([]float32, 8), 4, 2, 2, 4, true) },
			"short up": func() { k.SiluMul(make([]float32, 4), make([]float32, 4), make([]float32, 3)) },
		} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s did not panic", name)
					}
				}()
				call()
			}()
		}
	})
}
