{{/* The chart's name, or what replaces it. */}}
{{- define "medley.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of the release's objects: "medley" for a release of that name, else "<release>-medley". */}}
{{- define "medley.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "medley.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "medley.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Names of the objects that make up the operator: "<full name>-operator". */}}
{{- define "medley.operatorName" -}}
{{- printf "%s-operator" (include "medley.fullname" . | trunc 54 | trimSuffix "-") -}}
{{- end -}}

{{- define "medley.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "medley.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name must be given where serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Labels by which the operator's pods are selected; they never change. */}}
{{- define "medley.selectorLabels" -}}
app.kubernetes.io/name: {{ include "medley.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* Labels of every object. Not managed-by: medley, which marks what the operator itself makes. */}}
{{- define "medley.labels" -}}
{{ include "medley.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: medley
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "medley.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* What a schema cannot say of two fields: leadership is exclusive only where the leader gives up before others take over. */}}
{{- define "medley.checkLeaderElection" -}}
{{- with .Values.leaderElection -}}
{{- if ge (float64 .renewDeadlineSeconds) (float64 .leaseDurationSeconds) -}}
{{- fail "leaderElection.renewDeadlineSeconds must be less than leaderElection.leaseDurationSeconds" -}}
{{- end -}}
{{- if gt (mulf 2.0 .retryPeriodSeconds) (float64 .renewDeadlineSeconds) -}}
{{- fail "leaderElection.retryPeriodSeconds must be at most half of leaderElection.renewDeadlineSeconds" -}}
{{- end -}}
{{- end -}}
{{- end -}}
