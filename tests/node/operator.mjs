// Resources of the Prometheus operator, as a JSON list in the first argument, against its schemas. One line
// for each that does not hold.

import * as models from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";

for (const resource of JSON.parse(process.argv[2])) {
  const Model = models[resource.kind];
  if (Model === undefined) {
    console.log(`${resource.kind}: no schema`);
    continue;
  }
  try {
    new Model(resource).validate();
  } catch (error) {
    console.log(`${resource.kind}: ${error.message}`);
  }
}
