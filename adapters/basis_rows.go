package adapters

import "math"

// rowKey is the stream of one row. Nothing in it depends on R, so rows are nested.
func rowKey(m Method, seed uint64, layer int, site Site, row int) *stream {
	var tag uint64
	for _, c := range []byte(m) {
		tag = tag<<8 ^ tag>>56 ^ uint64(c)
	}
	return newStream(tag, seed, uint64(layer), uint64(site), uint64(row))
}

// orthonormalRows are random rows made orthonormal in their order by modified Gram-Schmidt, run twice. Sums are
// sequential, and products are converted explicitly so that no compiler fuses them into a multiply-add: the rows
// are the same on every architecture.
func orthonormalRows(seed uint64, layer int, site Site, r, in int) [][]float64 {
	rows := make([][]float64, 0, r)
	for i := range r {
		s := rowKey(Orthonormal, seed, layer, site, i)
		v := make([]float64, in)
		for j := range v {
			v[j] = s.bell()
		}
		for range 2 {
			for _, q := range rows {
				c := dot(v, q)
				for j := range v {
					v[j] -= float64(c * q[j])
				}
			}
			norm := math.Sqrt(dot(v, v))
			for j := range v {
				v[j] /= norm
			}
		}
		rows = append(rows, v)
	}
	return rows
}

func dot(a, b []float64) float64 {
	sum := 0.0
	for i := range a {
		sum += float64(a[i] * b[i])
	}
	return sum
}

// kaimingRows are uniform in ±1/√in: PEFT's kaiming_uniform with a = √5.
func kaimingRows(seed uint64, layer int, site Site, r, in int) [][]float64 {
	bound := 1 / math.Sqrt(float64(in))
	rows := make([][]float64, r)
	for i := range rows {
		s := rowKey(Kaiming, seed, layer, site, i)
		rows[i] = make([]float64, in)
		for j := range rows[i] {
			rows[i][j] = float64((float64(2*s.uniform()) - 1) * bound)
		}
	}
	return rows
}
