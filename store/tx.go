// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"slices"
)

// The buckets of berth.db, as doc.go draws them.
const (
	bucketMeta       = "meta"
	bucketPods       = "pods"
	bucketContainers = "containers"
	bucketImages     = "images"
	bucketLayers     = "layers"
)

// The properties by which records can be found.
const (
	byState  = "state"
	byPod    = "pod"
	byName   = "name"
	byLayer  = "layer"
	byParent = "parent"
)

// A Tx is one write to berth.db of any number of records: all of it is made, or
// none. It is given to the function of [DB.Update], sees what that function has
// put, and is of no use after it.
type Tx struct {
	db         *DB
	list       []change
	pods       map[PodID]*Pod
	containers map[ContainerID]*Container
	images     map[ImageID]*Image
	layers     map[LayerID]*Layer
}

func (db *DB) newTx() *Tx {
	return &Tx{
		db:         db,
		pods:       make(map[PodID]*Pod),
		containers: make(map[ContainerID]*Container),
		images:     make(map[ImageID]*Image),
		layers:     make(map[LayerID]*Layer),
	}
}

// durable is a record of berth.db.
type durable[R any] interface {
	*R
	check() error
}

// keep adds a record to the transaction. What readers will see is decoded from what is written: nothing of
// it is the caller's.
func keep[K ~string, R any, P durable[R]](tx *Tx, t *table[K, R], local map[K]*R, bucket string, r *R) error {
	if err := P(r).check(); err != nil {
		return err
	}
	b, err := encode(r)
	if err != nil {
		return err
	}
	row, err := decode[R](b)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	id := t.id(row)
	local[id] = row
	tx.list = append(tx.list, &rowChange[K, R]{t, id, row, []put{{bucket, string(id), frame(bucket, string(id), b)}}})
	return nil
}

func drop[K ~string, R any](tx *Tx, t *table[K, R], local map[K]*R, bucket string, id K) {
	local[id] = nil
	tx.list = append(tx.list, &rowChange[K, R]{t, id, nil, []put{{bucket, string(id), nil}}})
}

func look[K ~string, R any](tx *Tx, t *table[K, R], local map[K]*R, id K) (R, bool) {
	tx.db.mu.RLock()
	defer tx.db.mu.RUnlock()
	if r := t.newest(id, local, true); r != nil {
		return *r, true
	}
	var none R
	return none, false
}

// Pod returns the record of a pod.
func (tx *Tx) Pod(id PodID) (Pod, bool) { return look(tx, tx.db.pods, tx.pods, id) }

// Container returns the record of a container.
func (tx *Tx) Container(id ContainerID) (Container, bool) {
	return look(tx, tx.db.containers, tx.containers, id)
}

// Image returns the record of an image.
func (tx *Tx) Image(id ImageID) (Image, bool) { return look(tx, tx.db.images, tx.images, id) }

// Layer returns the record of a layer.
func (tx *Tx) Layer(id LayerID) (Layer, bool) { return look(tx, tx.db.layers, tx.layers, id) }

// ImageNamed returns the image that has a name.
func (tx *Tx) ImageNamed(name string) (found Image, ok bool) {
	tx.db.mu.RLock()
	defer tx.db.mu.RUnlock()
	tx.db.images.newestWhere(byName, name, tx.images, true, func(i *Image) bool {
		if slices.Contains(i.Names, name) {
			found, ok = *i, true
		}
		return !ok
	})
	return found, ok
}

// PutPod adds a pod, or replaces its record. ErrInvalid if its id cannot be one.
func (tx *Tx) PutPod(p Pod) error { return keep(tx, tx.db.pods, tx.pods, bucketPods, &p) }

// PutContainer adds a container, or replaces its record. The commit fails with
// ErrDangling if there is no such pod.
func (tx *Tx) PutContainer(c Container) error {
	return keep(tx, tx.db.containers, tx.containers, bucketContainers, &c)
}

// PutImage adds an image, or replaces its record. The commit fails with
// ErrDangling if a layer is not there, and with ErrNameTaken if another image has
// one of its names.
func (tx *Tx) PutImage(i Image) error { return keep(tx, tx.db.images, tx.images, bucketImages, &i) }

// PutLayer adds a layer, or replaces its record. The commit fails with ErrDangling
// if its parent is not there.
func (tx *Tx) PutLayer(l Layer) error { return keep(tx, tx.db.layers, tx.layers, bucketLayers, &l) }

// DeletePod removes a pod; one that is not there is no error. The commit fails
// with ErrInUse if the pod has containers.
func (tx *Tx) DeletePod(id PodID) { drop(tx, tx.db.pods, tx.pods, bucketPods, id) }

// DeleteContainer removes a container; one that is not there is no error.
func (tx *Tx) DeleteContainer(id ContainerID) {
	drop(tx, tx.db.containers, tx.containers, bucketContainers, id)
}

// DeleteImage removes an image, but not its layers; one that is not there is no
// error.
func (tx *Tx) DeleteImage(id ImageID) { drop(tx, tx.db.images, tx.images, bucketImages, id) }

// DeleteLayer removes a layer; one that is not there is no error. The commit fails
// with ErrInUse if an image consists of it or a layer depends on it.
func (tx *Tx) DeleteLayer(id LayerID) { drop(tx, tx.db.layers, tx.layers, bucketLayers, id) }

// changes ends the transaction.
func (tx *Tx) changes() *changes { return &changes{list: tx.list, valid: tx.valid} }

// valid holds that what the records of the transaction refer to is there, as it will be when all of the
// transaction is. DB.mu is held.
func (tx *Tx) valid(inBatch bool) error {
	for id, p := range tx.pods {
		if p != nil {
			continue
		}
		if err := tx.podUnused(id, inBatch); err != nil {
			return err
		}
	}
	for id, c := range tx.containers {
		if c != nil && tx.db.pods.newest(c.PodID, tx.pods, inBatch) == nil {
			return fmt.Errorf("%w: container %s to pod %s", ErrDangling, id, c.PodID)
		}
	}
	for _, i := range tx.images {
		if i == nil {
			continue
		}
		if err := tx.imageWhole(i, inBatch); err != nil {
			return err
		}
	}
	for id, l := range tx.layers {
		switch {
		case l == nil:
			if err := tx.layerUnused(id, inBatch); err != nil {
				return err
			}
		case l.Parent != "" && tx.db.layers.newest(l.Parent, tx.layers, inBatch) == nil:
			return fmt.Errorf("%w: layer %s to layer %s", ErrDangling, id, l.Parent)
		}
	}
	return nil
}

func (tx *Tx) podUnused(id PodID, inBatch bool) (err error) {
	tx.db.containers.newestWhere(byPod, string(id), tx.containers, inBatch, func(c *Container) bool {
		if c.PodID == id {
			err = fmt.Errorf("pod %s %w by container %s", id, ErrInUse, c.ID)
		}
		return err == nil
	})
	return err
}

func (tx *Tx) imageWhole(i *Image, inBatch bool) (err error) {
	for _, l := range i.Layers {
		if tx.db.layers.newest(l, tx.layers, inBatch) == nil {
			return fmt.Errorf("%w: image %s to layer %s", ErrDangling, i.ID, l)
		}
	}
	for _, name := range i.Names {
		tx.db.images.newestWhere(byName, name, tx.images, inBatch, func(other *Image) bool {
			if other.ID != i.ID && slices.Contains(other.Names, name) {
				err = fmt.Errorf("%w: %s is %s", ErrNameTaken, name, other.ID)
			}
			return err == nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (tx *Tx) layerUnused(id LayerID, inBatch bool) (err error) {
	tx.db.images.newestWhere(byLayer, string(id), tx.images, inBatch, func(i *Image) bool {
		if slices.Contains(i.Layers, id) {
			err = fmt.Errorf("layer %s %w by image %s", id, ErrInUse, i.ID)
		}
		return err == nil
	})
	if err != nil {
		return err
	}
	tx.db.layers.newestWhere(byParent, string(id), tx.layers, inBatch, func(l *Layer) bool {
		if l.Parent == id {
			err = fmt.Errorf("layer %s %w by layer %s", id, ErrInUse, l.ID)
		}
		return err == nil
	})
	return err
}
